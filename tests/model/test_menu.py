"""Every member of every union of the model: exact gradients, weights kept, configs there and back, refusals by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llmlab.checkpoints.native import load_model, save_model
from llmlab.errors import InputError
from llmlab.model.block import deepnorm
from llmlab.model.masks import Blank
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture, Transformer
from llmlab.recipe import parse

VOCABULARY = 17
TINY: dict[str, Any] = {
    "layers": 2,
    "dim": 8,
    "context": 8,
    "initial_std": 0.4,
    "feedforward": {"kind": "swiglu", "width": 8},
}


def kind(member: Any) -> str:
    return str(member.model_fields["kind"].default)


def build(**parts: Any) -> Transformer:
    """A tiny model in which nothing sits at its initial 0 or 1."""
    parts = {"attention": {"kind": "mha", "heads": 2}, **TINY, **parts}
    if "attention" in parts and parts["attention"].get("kind") not in ("rnn", "lstm", "gru"):
        parts["attention"] = {"heads": 2, **parts["attention"]}
    if parts["attention"].get("kind") == "gqa":
        parts["attention"] = {"kv_heads": 1, **parts["attention"]}
    model = parse(Architecture, parts).build(VOCABULARY).eval()
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.2)
    return model


def ids(length: int = 5) -> Tensor:
    return torch.randint(VOCABULARY, (1, length), generator=torch.Generator().manual_seed(1))


def exact_gradient(model: Transformer, at: Places) -> None:
    """The gradient by autograd is that of finite differences, float64, through the whole model."""
    model = model.double()
    width = model.embedding.embedding_dim
    x = torch.randn(1, at.order.shape[1], width, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def run(embedded: Tensor) -> Tensor:
        hook = model.embedding.register_forward_hook(lambda *_: embedded)
        try:
            return model.hidden(torch.zeros(at.order.shape, dtype=torch.long), at)
        finally:
            hook.remove()

    assert torch.autograd.gradcheck(run, x.requires_grad_(), eps=1e-6, atol=1e-5, rtol=1e-3, fast_mode=True)


def kept(model: Transformer, folder: Path) -> None:
    """Saved and opened again it is the same; its config says the same in JSON and back."""
    a = model.architecture
    assert parse(Architecture, a.model_dump(mode="json")) == a
    save_model(folder / "model", model, None)
    back = load_model(folder / "model").model
    assert back.architecture == a
    with torch.no_grad():
        if a.encoder_layers:
            memories = [m.encode(ids(), Places.causal(1, 5)) for m in (back, model)]
            assert torch.equal(back(ids(), memory=memories[0]), model(ids(), memory=memories[1]))
        else:
            assert torch.equal(back(ids()), model(ids()))


def test_mixings(mixing: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path) -> None:
    model = build(position=mixing[0], attention=mixing[1])
    kept(model, tmp_path)
    packed = Places.causal(1, 3).cat(Places.causal(1, 2))
    document = torch.tensor([[0, 0, 0, 1, 1]])
    exact_gradient(model, Places(packed.position, packed.order, document, document))


def test_norms(norm_kind: type, tmp_path: Path) -> None:
    model = build(norm=norm_kind(), embedding={"norm": True})
    kept(model, tmp_path)
    exact_gradient(model, Places.causal(1, 4))


def test_feedforwards(feedforward_kind: type, tmp_path: Path) -> None:
    model = build(feedforward={"kind": kind(feedforward_kind), "width": 8, "bias": True})
    kept(model, tmp_path)
    exact_gradient(model, Places.causal(1, 4))


def test_wirings(wiring_kind: type, tmp_path: Path) -> None:
    model = build(wiring=wiring_kind())
    kept(model, tmp_path)
    exact_gradient(model, Places.causal(1, 4))


@pytest.mark.parametrize(
    "parts",
    [
        {"encoder_layers": 1, "position": "t5"},
        {"encoder_layers": 1, "position": "learned", "wiring": "sandwich"},
        {"encoder_layers": 2, "position": "sinusoidal", "wiring": "deepnorm"},
        {"encoder_layers": 1, "position": "learned", "embedding": {"dim": 4}, "tied": False},
        {"shared": True},
        {"embedding": {"dim": 4, "scale": 2.0, "segments": 2}, "position": "learned", "tied": False},
        {"local": {"layers": [0], "window": 2, "position": {"kind": "rope", "base": 100.0}}},
        {"head": {"kind": "transformed", "activation": "gelu"}, "pooled": 2, "mask": "bidirectional"},
        {"head": {"kind": "linear", "bias": True, "scale": 0.5}, "tied": False},
        {"streams": 2, "position": {"kind": "xl", "segments": True}},
        {"mask": {"kind": "prefix", "length": 2}},
        {"norm": {"kind": "rmsnorm", "offset": 1.0, "partial": 0.5}},
        {"feedforward": {"kind": "swiglu", "learnt": True, "width": 8}},
    ],
    ids=str,
)
def test_what_surrounds_them(parts: dict[str, Any], tmp_path: Path) -> None:
    model = build(**parts)
    kept(model, tmp_path)
    if not model.encoder:
        exact_gradient(model, Places.causal(1, 4))


def test_an_encoder_is_seen_whole_and_by_its_document_only() -> None:
    model = build(encoder_layers=1, position="t5")
    at = Places.of_lengths([5, 3], 5)
    source = torch.randint(VOCABULARY, (2, 5), generator=torch.Generator().manual_seed(3))
    decoded = torch.randint(VOCABULARY, (2, 4), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        both = model(decoded, memory=model.encode(source, at))
        alone = model(decoded[1:], memory=model.encode(source[1:, :3], Places.causal(1, 3)))
        torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=1e-4)
        changed = source.clone()
        changed[0, 4] = (changed[0, 4] + 1) % VOCABULARY
        moved = (model(decoded, memory=model.encode(changed, at)) - both).abs().amax(-1)
    assert (moved[0] > 0).all()
    assert (moved[1] == 0).all()
    with pytest.raises(InputError, match="memory: is missing"):
        model(decoded)
    with pytest.raises(InputError, match=r"model\.encoder_layers: this model has no encoder"):
        build().encode(source, at)


def test_the_query_stream_never_sees_its_own_token() -> None:
    """Yang et al. 2019: changing x_t leaves what is predicted of x_t as it was, and moves what comes later."""
    model = build(streams=2, position="xl", attention={"kind": "mha", "heads": 2})
    rank = torch.tensor([[3, 0, 4, 1, 2]])
    at = Places(torch.arange(5)[None], rank, torch.zeros(1, 5, dtype=torch.long))
    given = ids()
    with torch.no_grad():
        before = model.queries(given, at)
        for column in range(5):
            other = given.clone()
            other[0, column] = (other[0, column] + 1) % VOCABULARY
            moved = (model.queries(other, at) - before).abs().amax(-1)[0]
            assert torch.equal(moved > 0, rank[0] > rank[0, column])
    with pytest.raises(InputError, match=r"model\.streams: this model has one stream"):
        build().queries(given, at)


def test_masks(mask_kind: type) -> None:
    """What each token sees of ids alone, by the model's outputs."""
    settings = {"prefix": {"length": 2}, "blank": {"start_id": 3, "blank_ids": [2]}}.get(kind(mask_kind), {})
    axes = 2 if mask_kind is Blank else 1
    model = build(mask={"kind": kind(mask_kind), **settings}, position={"kind": "rope", "axes": axes}, layers=1)
    given = torch.tensor([[5, 2, 6, 3, 7, 8]])
    seen = torch.zeros(6, 6, dtype=torch.bool)
    with torch.no_grad():
        before = model(given)
        for column in range(6):
            other = given.clone()
            other[0, column] = 9
            at = model.architecture.mask.places(given)
            seen[:, column] = (model(other, at) - before).abs().amax(-1)[0] > 0
    expected = torch.ones(6, 6).tril() > 0
    if kind(mask_kind) == "bidirectional":
        expected[:] = True
    if kind(mask_kind) == "prefix":
        expected[0, 1] = True
    if kind(mask_kind) == "blank":
        expected[:3, :3] = True
        expected[0, 3] = expected[1, 3] = expected[2, 3] = False
    assert torch.equal(seen, expected)
    after = model.architecture.mask.after(at)
    whole = model.architecture.mask.places(torch.cat([given, torch.tensor([[9]])], 1))
    assert torch.equal(after.position, whole.position[:, -1:])
    if kind(mask_kind) != "bidirectional":
        assert torch.equal(after.order, whole.order[:, -1:])


def test_a_blank_is_looked_for() -> None:
    model = build(mask={"kind": "blank", "start_id": 3, "blank_ids": [2]}, position={"kind": "rope", "axes": 2})
    for given, says in (([5, 2, 6], "hold no start token 3"), ([5, 3, 6], "hold no blank")):
        with pytest.raises(InputError, match=says):
            model(torch.tensor([given]))


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"position": "alibi", "encoder_layers": 1}, r"model\.position: alibi cannot go with an encoder"),
        (
            {"attention": {"kind": "lstm"}, "position": "none", "mask": "bidirectional"},
            r"model\.mask: bidirectional cannot go",
        ),
        (
            {"attention": {"kind": "linear"}, "position": "none", "encoder_layers": 1},
            r"model\.encoder_layers: cannot go with linear",
        ),
        (
            {"attention": {"kind": "gru"}, "position": "none", "streams": 2},
            r"model\.streams: a second stream cannot go with gru",
        ),
        ({"wiring": "parallel", "encoder_layers": 1, "position": "t5"}, r"model\.wiring: parallel cannot go"),
        (
            {"local": {"layers": [0], "window": 2, "position": "learned"}},
            r"model\.local\.position: learned is added to",
        ),
        ({"local": {"layers": [7], "window": 2}}, r"model\.local\.layers: 7 is no layer"),
        ({"position": {"kind": "rope", "scaling": "yarn"}}, r"trained: is required"),
        ({"position": {"kind": "rope", "scaling": "yarm"}}, r"unknown kind 'yarm' \(did you mean 'yarn'"),
        ({"embedding": {"dim": 4}}, r"model\.embedding\.dim: a table 4 wide cannot be the head of states 8 wide"),
        ({"head": "none", "tied": False}, r"model\.tied: false needs a head"),
    ],
)
def test_what_cannot_go_together_is_named(parts: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        build(**parts)


def test_dynamic_scaling_refuses_a_stale_cache() -> None:
    from llmlab.inference.cache import DenseCache

    model = build(position={"kind": "rope", "scaling": {"kind": "dynamic", "trained": 4}})
    cache = DenseCache(8)
    with torch.no_grad():
        model(ids(3), Places.causal(1, 3), cache)
        model(ids(1), Places.causal(1, 1, start=3), cache)  # still as trained
        with pytest.raises(InputError, match=r"model\.position\.scaling: dynamic turns every key anew"):
            model(ids(1), Places.causal(1, 1, start=4), cache)
        assert model(ids(8)).isfinite().all()  # whole texts are read


def test_scalings_leave_the_trained_length_alone_or_say_how(scaling_kind: type) -> None:
    """dynamic and logn change nothing up to the trained length; none of them changes position 0."""
    needed = {"dynamic": {"trained": 8}, "yarn": {"trained": 8}, "logn": {"trained": 8}, "llama3": {"trained": 8}}
    scaling = {"kind": kind(scaling_kind), **needed.get(kind(scaling_kind), {})}
    scaled, plain = build(position={"kind": "rope", "scaling": scaling}), build(position="rope")
    with torch.no_grad():
        gap = (scaled(ids(8)) - plain(ids(8))).abs().amax(-1)[0]
    if kind(scaling_kind) in ("none", "dynamic", "logn"):
        assert gap.max() < 1e-6
    else:
        assert gap[-1] > (1e-7 if kind(scaling_kind) == "float16" else 1e-4)
    if kind(scaling_kind) != "yarn":  # its temperature acts at once
        assert gap[0] < 1e-6


def test_deepnorm_constants_are_the_papers() -> None:
    """Wang et al. 2022, table 2; N=12 and N=100 alone, 18-18 with an encoder."""
    for given, alpha, beta in (
        ((12,), 2.213, 0.319),
        ((100,), 3.761, 0.188),
        ((18, 18, True), 1.999, 0.353),
        ((18, 18, False), 2.711, 0.261),
    ):
        assert deepnorm(*given) == (pytest.approx(alpha, abs=1e-3), pytest.approx(beta, abs=1e-3))


def test_deepnorm_with_one_and_one_is_post() -> None:
    post, deep = build(wiring="post"), build(wiring={"kind": "deepnorm", "alpha": 1.0, "beta": 1.0})
    deep.load_state_dict(post.state_dict())
    with torch.no_grad():
        assert torch.equal(post(ids()), deep(ids()))


def test_deepnorm_scales_the_initial_weights_of_three_parts() -> None:
    parts = {
        "layers": 12,
        "dim": 64,
        "initial_std": None,
        "attention": {"kind": "mha", "heads": 4},
        "feedforward": "relu",
    }
    deep = parse(Architecture, {**parts, "wiring": "deepnorm"}).build(VOCABULARY)
    plain = parse(Architecture, {**parts, "wiring": {"kind": "deepnorm", "beta": 1.0}}).build(VOCABULARY)
    beta = deepnorm(12)[1]
    for name, parameter in plain.named_parameters():
        if parameter.ndim < 2:
            continue
        ratio = float((deep.get_parameter(name).std() / parameter.std()).detach())
        scaled = any(part in name for part in ("value", "attention.output", "feedforward"))
        assert ratio == pytest.approx(beta if scaled else 1.0, rel=1e-4), name
