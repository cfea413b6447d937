"""Adapter folders against peft itself, both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from llmlab.adapters.kinds import Adapter
from llmlab.adapters.lora import LoRA
from llmlab.adapters.merging import merge, settle
from llmlab.adapters.part import adapter_parameters, add_adapter
from llmlab.adapters.peft_format import CONFIG, WEIGHTS, load_head, load_peft, read_config, save_adapter
from llmlab.checkpoints.native import read_safetensors
from llmlab.errors import InputError
from llmlab.families.mapping import family_of, to_hf
from llmlab.model.heads import ScalarHead
from llmlab.model.transformer import Architecture, Transformer
from llmlab.recipe import Section, parse
from llmlab.runtime import generator, write_safetensors

VOCABULARY = 40
# peft and transformers warn about each other.
pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::UserWarning")]
GPT2: dict[str, Any] = {
    "position": "learned",
    "norm": "layernorm",
    "attention": {"kind": "mha", "heads": 4, "bias": True},
    "feedforward": {"kind": "gelu_tanh", "bias": True},
}


def build(**parts: Any) -> Transformer:
    small: dict[str, Any] = {"layers": 2, "dim": 32, "context": 32, "initial_std": 0.2}
    return parse(Architecture, small | parts).build(VOCABULARY, 0).eval()


def with_adapter(model: Transformer, name: str = "a", **settings: Any) -> Transformer:
    add_adapter(model, name, LoRA(rank=3, alpha=5.0, **settings), seed=0)
    with torch.no_grad():
        for key, parameter in adapter_parameters(model, name).items():
            parameter.normal_(0, 0.1, generator=generator(1, name, key))
    return model


@torch.no_grad()
def stir(model: Transformer, name: str) -> None:
    """Other numbers than the fresh ones."""
    for key, parameter in adapter_parameters(model, name).items():
        parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator(1, name, key)))


def in_transformers(model: Transformer) -> Any:
    """The same base in transformers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    family = family_of(model.architecture)
    theirs = LlamaForCausalLM(LlamaConfig(**family.write_config(model.architecture, VOCABULARY)))
    state = to_hf(family, model.architecture, model.state_dict())
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    theirs.tie_weights()
    return theirs.eval()


# Every kind that peft has, ours and peft's settings of it.
THEIRS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "rslora": ({"kind": "lora", "rank": 3, "scaling": "root_rank"}, "LoraConfig", {"r": 3, "use_rslora": True}),
    "dora": ({"kind": "dora", "rank": 3}, "LoraConfig", {"r": 3, "use_dora": True}),
    "ia3": ({"kind": "ia3"}, "IA3Config", {"feedforward_modules": ["down_proj"]}),
    "prefix": ({"kind": "prefix", "tokens": 3}, "PrefixTuningConfig", {"num_virtual_tokens": 3}),
    "prefix network": (
        {"kind": "prefix", "tokens": 3, "hidden": 5},
        "PrefixTuningConfig",
        {"num_virtual_tokens": 3, "prefix_projection": True, "encoder_hidden_size": 5},
    ),
    "prompt": ({"kind": "prompt", "tokens": 3}, "PromptTuningConfig", {"num_virtual_tokens": 3}),
    "ptuning": (
        {"kind": "ptuning", "tokens": 3, "hidden": 5},
        "PromptEncoderConfig",
        {"num_virtual_tokens": 3, "encoder_hidden_size": 5},
    ),
}
TARGETS = {"LoraConfig": ["q_proj", "k_proj", "down_proj"], "IA3Config": ["k_proj", "v_proj", "down_proj"]}


class Holding(Section):
    adapter: Adapter


def of_text(logits: Tensor) -> Tensor:
    """Without those of virtual tokens, which peft answers too."""
    return logits[:, -ids().shape[1] :]


@pytest.mark.parametrize("position", ["rope", "rope_interleaved"])
@pytest.mark.parametrize("kind", THEIRS)
def test_peft_opens_every_kind_of_ours_with_equal_logits(tmp_path: Path, kind: str, position: str) -> None:
    from peft import PeftModel

    parts = {"position": position, "attention": {"kind": "gqa", "heads": 4, "kv_heads": 2}}
    model, theirs = build(**parts), in_transformers(build(**parts))
    add_adapter(model, "a", parse(Holding, {"adapter": THEIRS[kind][0]}).adapter, seed=0)
    stir(model, "a")
    save_adapter(tmp_path / "adapter", model, "a", base="base", layout="peft")
    with torch.no_grad():
        plain, ours = theirs(ids()).logits, model(ids(), role="a")
        opened = of_text(PeftModel.from_pretrained(theirs, str(tmp_path / "adapter")).eval()(ids()).logits)
    assert not torch.allclose(plain, opened, atol=1e-2)
    assert torch.allclose(ours, opened, atol=1e-4)


@pytest.mark.parametrize("position", ["rope", "rope_interleaved"])
@pytest.mark.parametrize("kind", THEIRS)
def test_ours_opens_every_kind_of_pefts_with_equal_logits(tmp_path: Path, kind: str, position: str) -> None:
    import peft

    parts = {"position": position, "attention": {"kind": "gqa", "heads": 4, "kv_heads": 2}}
    model, (_, name, settings) = build(**parts), THEIRS[kind]
    if name in TARGETS:
        settings = settings | {"target_modules": TARGETS[name]}
    torch.manual_seed(0)
    config = getattr(peft, name)(task_type="CAUSAL_LM", **settings)
    theirs = peft.get_peft_model(in_transformers(model), config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    theirs.save_pretrained(str(tmp_path))
    edited = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(edited | {"base_model_name_or_path": "somewhere"}))
    load_peft(tmp_path, model, "a")
    if "network" not in kind and kind != "ptuning":  # of which the vectors alone are saved
        of_text(theirs(ids()).logits).square().sum().backward()
        model(ids(), role="a").square().sum().backward()
        of_theirs = get_total_norm([p.grad for p in theirs.parameters() if p.grad is not None])
        of_ours = get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        assert torch.allclose(of_ours, of_theirs, rtol=1e-4)
    with torch.no_grad():
        expected = of_text(theirs(ids()).logits)
        assert torch.allclose(model(ids(), role="a"), expected, atol=1e-4)
        settle(model, "a")
        assert torch.allclose(model(ids()), expected, atol=1e-3)


def test_what_peft_has_not_or_would_compute_otherwise_is_llmlabs_own(tmp_path: Path) -> None:
    learned = build(position="learned", norm="layernorm")
    for model, settings in ((build(), {"kind": "bottleneck"}), (learned, {"kind": "prompt", "tokens": 3})):
        add_adapter(model, "a", parse(Holding, {"adapter": settings}).adapter, seed=0)
        with pytest.raises(InputError, match="peft"):
            save_adapter(tmp_path / "a", model, "a", base="base", layout="peft")
        save_adapter(tmp_path / "a", model, "a", base="base")
        assert json.loads((tmp_path / "a" / CONFIG).read_text())["peft_type"].startswith("LLMLAB_")


def test_pefts_virtual_tokens_before_learned_positions_are_refused(tmp_path: Path) -> None:
    model = build()
    add_adapter(model, "a", parse(Holding, {"adapter": {"kind": "prompt", "tokens": 3}}).adapter, seed=0)
    save_adapter(tmp_path / "a", model, "a", base="base")
    with pytest.raises(InputError, match="it would move positions that are no rope"):
        load_peft(tmp_path / "a", build(position="learned"), "a")


def ids() -> Tensor:
    return torch.randint(VOCABULARY, (2, 9), generator=generator(0, "ids"))


@pytest.mark.parametrize("position", ["rope", "rope_interleaved"])
@pytest.mark.parametrize("targets", ["all", ("query", "down"), ("blocks.0.attention.key", "up")])
def test_peft_opens_ours_with_equal_logits(tmp_path: Path, position: str, targets: Any) -> None:
    from peft import PeftModel

    theirs = in_transformers(build(position=position))
    model = with_adapter(build(position=position), targets=targets)
    save_adapter(tmp_path / "adapter", model, "a", base="base")
    plain = theirs(ids()).logits.detach()
    with torch.no_grad():
        ours = model(ids(), role="a")
        opened = PeftModel.from_pretrained(theirs, str(tmp_path / "adapter")).eval()(ids()).logits
    assert not torch.allclose(plain, opened, atol=1e-2)
    assert torch.allclose(ours, opened, atol=1e-4)


@pytest.mark.parametrize("position", ["rope", "rope_interleaved"])
def test_ours_opens_pefts_with_equal_logits(tmp_path: Path, position: str) -> None:
    from peft import LoraConfig, get_peft_model

    model = build(position=position)
    modules = ["q_proj", "v_proj", "gate_proj"]
    config = LoraConfig(r=4, lora_alpha=9, target_modules=modules, init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(0)
    theirs = get_peft_model(in_transformers(model), config).eval()
    theirs.save_pretrained(str(tmp_path))
    edited = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(edited | {"base_model_name_or_path": "somewhere"}))
    load_peft(tmp_path, model, "a")
    with torch.no_grad():
        expected = theirs(ids()).logits
        assert torch.allclose(model(ids(), role="a"), expected, atol=1e-4)
        merge(model, "a")
        assert torch.allclose(model(ids()), expected, atol=1e-3)


@pytest.mark.parametrize("parts", [{}, {"position": "rope_interleaved"}, GPT2, {"position": "alibi"}])
def test_round_trip_is_exact(tmp_path: Path, parts: dict[str, Any]) -> None:
    model = with_adapter(build(**parts), dropout=0.25)
    head = ScalarHead(32)
    torch.nn.init.normal_(head.weight)
    save_adapter(tmp_path / "a", model, "a", base=tmp_path / "base" / "model", head=head)
    config = read_config(tmp_path / "a")
    assert config.base == "../base/model"
    assert config.section == LoRA(rank=3, alpha=5.0, dropout=0.25)
    assert config.layout == ("llmlab" if parts in (GPT2, {"position": "alibi"}) else "peft")
    fresh = build(**parts)
    load_peft(tmp_path / "a", fresh, "b")
    theirs, mine = adapter_parameters(model, "a"), adapter_parameters(fresh, "b")
    assert theirs.keys() == mine.keys()
    assert all(torch.equal(theirs[key], mine[key]) for key in theirs)
    other = ScalarHead(32)
    load_head(tmp_path / "a", other)
    assert torch.equal(other.weight, head.weight)


def test_peft_refuses_llmlabs_own_layout(tmp_path: Path) -> None:
    from peft import PeftConfig

    save_adapter(tmp_path / "a", with_adapter(build(**GPT2)), "a", base="base")
    with pytest.raises((KeyError, ValueError, TypeError)):
        PeftConfig.from_pretrained(str(tmp_path / "a"))


def test_the_fused_family_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gpt2.*c_attn.*merge the adapter first"):
        save_adapter(tmp_path / "a", with_adapter(build(**GPT2)), "a", base="base", layout="peft")
    assert not (tmp_path / "a").exists()


def test_equal_adapters_give_equal_bytes(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        save_adapter(tmp_path / folder, with_adapter(build()), "a", base="base")
    for file in (CONFIG, WEIGHTS):
        assert (tmp_path / "x" / file).read_bytes() == (tmp_path / "y" / file).read_bytes()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"use_dora": True}, "magnitude is missing"),
        ({"lora_bias": True}, "lora_bias True is not read"),
        ({"base_weights": "nf4"}, "base_weights 'nf4' is not known"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias 'all'"),
        ({"peft_type": "VERA"}, "peft_type 'VERA' is not read"),
        ({"r": 0}, "rank"),
        ({"base_model_name_or_path": None}, "names no base"),
    ],
)
def test_configs_that_mean_something_else_are_refused(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    save_adapter(tmp_path / "a", with_adapter(build()), "a", base="base")
    file = tmp_path / "a" / CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=problem):
        load_peft(tmp_path / "a", build(), "a")


def test_weights_of_another_base_are_refused(tmp_path: Path) -> None:
    save_adapter(tmp_path / "a", with_adapter(build()), "a", base="base")
    with pytest.raises(InputError, match=r"layers\.1\..*is not the adapter of a linear"):
        load_peft(tmp_path / "a", build(layers=1), "a")
    with pytest.raises(InputError, match="the model needs"):
        load_peft(tmp_path / "a", build(dim=64), "a")
    tensors = read_safetensors(tmp_path / "a" / WEIGHTS)
    del tensors[next(key for key in tensors if "lora_B" in key)]
    write_safetensors(tmp_path / "a" / WEIGHTS, tensors)
    with pytest.raises(InputError, match="is missing"):
        load_peft(tmp_path / "a", build(), "a")
    (tmp_path / "a" / WEIGHTS).write_bytes(b"\x08")
    with pytest.raises(InputError, match="damaged"):
        load_peft(tmp_path / "a", build(), "a")
