"""What the X-ray finds is what a model was built of: every member of every union, every family, real weights; and it
looks at function and weights only."""

from __future__ import annotations

import copy
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from llmlab.checkpoints.where import open_model
from llmlab.families import mapping
from llmlab.interpret.xray import as_json, table, xray
from llmlab.model.attention import LinearAttention
from llmlab.model.mixers import SoftmaxAttention
from llmlab.model.norms import LayerNorm
from llmlab.model.rotary import DynamicNTK, NoScaling, Rope, RopeInterleaved
from llmlab.model.transformer import Architecture, Transformer
from llmlab.recipe import parse

VOCABULARY = 50


def build(**parts: Any) -> Transformer:
    small: dict[str, Any] = {"layers": 2, "dim": 32, "context": 64, "initial_std": 0.3}
    return perturbed(parse(Architecture, small | parts).build(VOCABULARY))


def perturbed(model: Transformer) -> Transformer:
    """Gains and biases that are not neutral."""
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    return model.eval()


def found(model: Transformer) -> dict[str, Any]:
    return {finding.name: finding.found for finding in xray(model)}


# ---------------------------------------------------------------- what should be found


def expected(a: Architecture) -> dict[str, Any]:
    """The findings that follow from an architecture."""
    says = {
        "layers": a.layers,
        "width": a.dim,
        "embedding width": a.embedding.dim or a.dim,
        "embedding norm": a.embedding.norm,
        "segments in embedding": a.embedding.segments,
        "wiring": a.wiring.kind,
        "norm": a.norm.kind,
        "norm bias": isinstance(a.norm, LayerNorm) and a.norm.bias,
        "norm gain offset": getattr(a.norm, "offset", 0.0),
        "norms a block": (2 + bool(a.encoder_layers)) * (2 if a.wiring.kind == "sandwich" else 1),
        "final norm": a.wiring.kind not in ("post", "deepnorm"),
        "mask": a.mask.kind,
        "gate": hasattr(a.feedforward.build(8), "gate"),
        "activation": ACTIVATIONS[a.feedforward.kind],
        "feed-forward width": a.feedforward.hidden_width(a.dim),
        "feed-forward biases": a.feedforward.bias,
        "tied": a.tied,
        "head": a.head.kind,
        "shared layers": a.shared and a.layers > 1,
        "streams": a.streams,
        "encoder layers": a.encoder_layers,
    }
    if a.feedforward.kind == "geglu" and a.feedforward.tanh:
        says["activation"] = "gelu_tanh"
    if hasattr(a.feedforward, "beta"):
        says["swish beta"] = a.feedforward.beta
    return says | _attention(a) | _position(a)


ACTIVATIONS = {
    **{"relu": "relu", "gelu": "gelu", "gelu_tanh": "gelu_tanh", "swish": "swish", "glu": "sigmoid"},
    **{"bilinear": "identity", "reglu": "relu", "geglu": "gelu", "swiglu": "swish"},
}


def _attention(a: Architecture) -> dict[str, Any]:
    part = a.attention
    if isinstance(part, LinearAttention):
        return {"mixer": "linear", "heads": part.heads, "key/value heads": part.heads}
    if not isinstance(part, SoftmaxAttention):
        return {"mixer": part.kind}
    windows = [part.window] * a.layers
    local: list[int] = []
    if a.local is not None:
        windows = [a.local.window if layer in a.local.layers else part.window for layer in range(a.layers)]
        local = sorted(a.local.layers) if len(set(windows)) > 1 else []
    return {
        "mixer": "softmax",
        "heads": part.heads,
        "key/value heads": part.key_heads,
        "head width": part.width(a.dim),
        "query and key norm": part.norm,
        "biases of query, key and value": part.bias,
        "bias of attention's output": part.biased_output,
        "cross-attention": a.encoder_layers > 0,
        "window": windows[local[0] if local else 0],
        "local layers": local,
        **({} if local else {"sinks": part.sinks if part.window else 0}),
    }


def _position(a: Architecture) -> dict[str, Any]:
    part = a.position
    says: dict[str, Any] = {"position": part.kind}
    if not isinstance(part, Rope | RopeInterleaved):
        return says
    if part.turned(a.attention.width(a.dim)) == 2:  # one pair alone is both layouts
        says["position"] = "rope"
    return says


def settings(a: Architecture) -> dict[str, Any]:
    """Rotary settings, where angles are a geometric series."""
    part = a.position
    if not isinstance(part, Rope | RopeInterleaved):
        return {}
    width = a.attention.width(a.dim)
    says: dict[str, Any] = {"fraction": part.turned(width) * part.axes / width}
    if part.axes == 2:
        says["axes"] = 2
    if isinstance(part.scaling, NoScaling) and part.turned(width) > 2:
        says["base"] = pytest.approx(part.base, rel=1e-4)
    return says


def check(model: Transformer) -> dict[str, Any]:
    findings = {finding.name: finding for finding in xray(model)}
    got = {name: finding.found for name, finding in findings.items()}
    a = model.architecture
    says = expected(a)
    assert {name: got.get(name) for name in says} == says
    assert got["norm epsilon"] == pytest.approx(a.norm.eps, rel=1e-2)
    if a.wiring.kind == "deepnorm":
        assert got["alpha"] == pytest.approx(model.blocks[0].alpha, rel=1e-4)
    if isinstance(a.attention, SoftmaxAttention):
        width = a.attention.width(a.dim)
        said = settings(a)
        assert {name: got["position settings"][name] for name in said} == said
        if isinstance(a.position, Rope | RopeInterleaved) and not isinstance(a.position.scaling, DynamicNTK):
            angles = a.position.scaling.frequencies(a.position.turned(width) // 2, a.position.base)
            evidence = findings["position"].evidence
            assert evidence["fastest angle"] == pytest.approx(float(angles.max()), rel=1e-4)
            assert evidence["slowest angle"] == pytest.approx(float(angles.min()), rel=1e-4)
    return got


# ---------------------------------------------------------------- every member of every union


def test_every_position_and_mixer(mixing: tuple[dict[str, Any], dict[str, Any]]) -> None:
    check(build(position=mixing[0], attention=mixing[1], layers=1))


def test_every_norm_and_wiring(wiring_kind: type, norm_kind: type) -> None:
    check(build(norm=norm_kind(eps=1e-3), wiring=wiring_kind()))


def test_every_feedforward(feedforward_kind: type) -> None:
    check(build(feedforward=feedforward_kind(bias=True), layers=1))


def test_every_mask(mask_kind: type) -> None:
    needed = {"prefix": {"length": 5}, "blank": {"start_id": 3, "blank_ids": [7, 8]}}
    kind = mask_kind.model_fields["kind"].default  # type: ignore[attr-defined]
    axes = {"position": {"kind": "rope", "axes": 2}} if kind == "blank" else {}
    check(build(mask={"kind": kind, **needed.get(kind, {})}, **axes))


@pytest.mark.parametrize(
    "parts",
    [
        {"norm": {"kind": "rmsnorm", "partial": 0.25}},
        {"norm": {"kind": "rmsnorm", "offset": 1.0}, "wiring": "sandwich"},
        {"norm": {"kind": "layernorm", "bias": False, "eps": 1e-12}},
        {"feedforward": {"kind": "swish", "beta": 1.5}},
        {"feedforward": {"kind": "geglu", "tanh": True}},
        {
            "embedding": {"norm": True, "scale": 3.0, "segments": 2, "dim": 16},
            "shared": True,
            "layers": 3,
            "tied": False,
        },
        {"attention": {"kind": "gqa", "heads": 4, "head_dim": 16, "window": 300, "sinks": 4}},
        {"attention": {"kind": "mha", "window": 70_000}},
        {"attention": {"kind": "mha", "window": 1}},
        {"local": {"layers": [0, 2], "window": 5, "position": {"kind": "rope", "base": 100.0}}, "layers": 3},
        {"position": {"kind": "learned", "offset": 2}, "mask": "bidirectional", "wiring": "post"},
        {"position": {"kind": "sinusoidal", "base": 500.0}, "attention": "rnn"},
        {"position": "t5", "encoder_layers": 2, "head": {"kind": "linear", "scale": 0.25}},
        {"position": "sinusoidal", "encoder_layers": 1, "wiring": "post", "norm": "layernorm"},
        {"position": "xl", "streams": 2, "wiring": "post"},
        {"head": {"kind": "transformed", "activation": "gelu"}, "mask": "bidirectional"},
        {"head": "none"},
        {"head": {"kind": "linear", "bias": True}, "tied": False, "context": 3, "position": "learned"},
    ],
    ids=str,
)
def test_further_settings(parts: dict[str, Any]) -> None:
    if parts.get("head") == "none":
        got = found(build(**parts))
        assert got["head"] == "none"
        assert "tied" not in got
        return
    model = build(**parts)
    got, a = check(model), model.architecture
    assert got["norm share measured"] == getattr(a.norm, "partial", 1.0)
    assert got["embedding scale"] == pytest.approx(a.embedding.scale, rel=1e-4)
    assert got["head bias"] == a.head.bias
    if a.head.kind == "linear" and a.tied:
        assert got["head scale"] == pytest.approx(a.head.scale, rel=1e-4)
    if a.position.kind == "learned":
        assert got["position settings"] == {"positions": a.context, "offset": a.position.offset}
    if a.position.kind == "sinusoidal":
        assert got["position settings"]["base"] == pytest.approx(a.position.base, rel=1e-4)
    if a.local is not None and a.local.position is not None:
        assert got["local position settings"]["base"] == pytest.approx(100.0, rel=1e-4)
    if a.encoder_layers:
        assert got["encoder mask"] == "bidirectional"
        assert got["encoder position"] == a.position.kind
        assert got["encoder wiring"] == a.wiring.kind


def test_slopes_and_distances() -> None:
    assert found(build(position="alibi"))["position settings"]["slopes"] == [0.25, 0.0625, 0.015625, 0.003906]
    assert found(build(position={"kind": "shaw", "clip": 5}))["position settings"] == {"distances told apart": 6}
    assert found(build(position={"kind": "t5", "buckets": 16}))["position settings"] == {"distances told apart": 16}


# ---------------------------------------------------------------- families and real weights

FAMILIES = Path(__file__).parents[1] / "families"


def _module(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"xray_{name}", FAMILIES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def family_cases() -> list[Any]:
    cases = []
    references = _module("references")
    for name, configs in references.REFERENCES.items():
        if name in mapping.known():
            cases += [pytest.param(name, config, id=f"{name}-{i}") for i, config in enumerate(configs)]
    chatglm = _module("test_chatglm")
    return cases + [pytest.param("chatglm", c["config"], id=f"chatglm-{i}") for i, c in enumerate(chatglm.CASES)]


@pytest.mark.parametrize(("name", "config"), family_cases())
def test_every_family(name: str, config: dict[str, Any]) -> None:
    family = mapping.family(name)
    if name != "chatglm":
        transformers = pytest.importorskip("transformers", reason="the reference implementation is a test dependency")
        fields = {"vocab_size": 60, "pad_token_id": None, **copy.deepcopy(config)}
        config = transformers.AutoConfig.for_model(name, **fields).to_dict()
    architecture, vocab_size = family.read_config(config)
    small = architecture.model_copy(update={"context": min(architecture.context, 128), "initial_std": 0.3})
    check(perturbed(small.build(vocab_size)))


def test_every_family_is_looked_at() -> None:
    assert {case.values[0] for case in family_cases()} == set(mapping.known())


def test_real_weights(smollm2: Path) -> None:
    whole = open_model(smollm2).model
    first = whole.architecture.model_copy(update={"layers": 2}).build(whole.vocab_size)
    first.load_state_dict({name: whole.state_dict()[name] for name in first.state_dict()})
    got = check(first.eval())
    assert got["wiring"] == "pre"
    assert got["norm"] == "rmsnorm"
    assert got["activation"] == "swish"
    assert got["gate"]
    assert (got["heads"], got["key/value heads"], got["tied"]) == (9, 3, True)
    assert got["position settings"]["base"] == pytest.approx(100_000, rel=1e-3)


# ---------------------------------------------------------------- function and weights, not names

# What the probes may ask a module of the model for: to run, its parts, its weights.
ASKED = {
    *("children", "modules", "parameters", "named_parameters", "weight", "double", "train", "eval", "training"),
    *("register_forward_hook", "register_forward_pre_hook", "__class__", "__deepcopy__", "__reduce_ex__"),
    *("embedding", "blocks", "encoder", "hidden", "encode", "queries", "logits", "prompted"),
}


@pytest.mark.parametrize(
    "parts",
    [
        {"position": "alibi", "wiring": "sandwich", "norm": "layernorm", "feedforward": "gelu"},
        {"position": "rope_interleaved", "wiring": "post", "attention": {"kind": "mqa", "window": 9}},
        {"position": "learned", "attention": "gru", "tied": False},
        {"position": "t5", "encoder_layers": 1},
    ],
    ids=str,
)
def test_nothing_is_read_off_names(parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every class is renamed, and whoever asks for more than function and weights from within the X-ray is caught."""
    model = build(**parts)
    before = found(model)
    asked: set[str] = set()

    def spied(self: nn.Module, name: str) -> Any:
        if sys._getframe(1).f_globals.get("__name__", "").startswith("llmlab.interpret"):
            asked.add(name)
        return object.__getattribute__(self, name)

    for module in list(model.modules()):
        module.__class__ = type("Nameless", (type(module),), {"__getattribute__": spied})
    assert found(model) == before
    assert asked <= ASKED
    assert "logits" in asked  # the spy hears


def test_the_model_is_left_as_it_was() -> None:
    model = build(attention={"kind": "gqa", "norm": True}, dropout=0.1).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    xray(model)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_norm_inside_the_branch_alone_is_told_from_pre() -> None:
    """OLMo 2's wiring, which is not in the menu: scaling the stream alone takes it for pre-norm."""
    model = build(wiring="sandwich")
    for block in model.blocks:
        block.attention_norm = block.feedforward_norm = nn.Identity()
    assert found(model)["wiring"] == "branch"


def test_an_unknown_activation_is_called_so() -> None:
    model = build(feedforward="relu")
    for block in model.blocks:
        block.feedforward.activation = torch.sin
    assert found(model)["activation"] == "unknown"


def test_each_finding_can_be_read() -> None:
    findings = xray(build())
    lines = table(findings).splitlines()
    assert len(lines) == len(findings) == len(as_json(findings))
    assert any(line.startswith("wiring ") and " pre " in line for line in lines)
    assert as_json(findings)["wiring"]["evidence"]["stream tenfold, block's answer"] == pytest.approx(10, rel=0.01)
