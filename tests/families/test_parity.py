"""Logits, loss, cache, config and state equal to transformers on tiny random models, for every family."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from llmlab.checkpoints.bundle import Bundle
from llmlab.checkpoints.hf import load_hf, save_hf
from llmlab.data.batch import IGNORE, Batch
from llmlab.errors import InputError
from llmlab.families import mapping
from llmlab.inference.cache import DenseCache
from llmlab.model.masks import Causal
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture, Transformer
from llmlab.objectives.language import NextToken
from llmlab.recipe import parse

transformers = pytest.importorskip("transformers", reason="the reference implementation is a test dependency")

_spec = importlib.util.spec_from_file_location("references", Path(__file__).with_name("references.py"))
references = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(references)
REFERENCES, VOCAB, reference = references.REFERENCES, references.VOCAB, references.reference

TOLERANCE = 1e-4
IDS = torch.randint(VOCAB, (3, 9), generator=torch.Generator().manual_seed(1))


def decoder(name: str) -> bool:
    """Whether the family reads from left to right and has one stack, as these tests ask it to."""
    a, _ = mapping.family(name).read_config(reference(name, REFERENCES[name][0]).config.to_dict())
    return isinstance(a.mask, Causal) and not a.encoder_layers and a.streams == 1


# Families whose code lies beside their weights have recorded figures and tests of their own.
THERE = [name for name in mapping.known() if not getattr(mapping.family(name), "REMOTE", False)]
DECODERS = [name for name in THERE if decoder(name)]
CASES = [pytest.param(n, config, id=f"{n}-{i}") for n in DECODERS for i, config in enumerate(REFERENCES[n])]


def test_every_family_is_compared() -> None:
    assert set(THERE) <= set(REFERENCES)
    assert "openai-gpt" in mapping.known()
    assert mapping.family("openai-gpt").__name__ == "llmlab.families.openai_gpt"


def opened(name: str, theirs: Any) -> Transformer:
    family = mapping.family(name)
    architecture, vocab_size = family.read_config(theirs.config.to_dict())
    ours = architecture.build(vocab_size).eval()
    ours.load_state_dict(mapping.from_hf(family, ours, theirs.state_dict()))
    return ours


def scaling_of(a: Architecture) -> Any:
    return getattr(a.position, "scaling", None)


def dynamic(a: Architecture) -> bool:
    """Whether angles follow the text's length: transformers takes the longest row's for all, we each text's own."""
    return getattr(scaling_of(a), "kind", None) == "dynamic"


@torch.no_grad()
@pytest.mark.parametrize(("name", "config"), CASES)
def test_logits_and_loss_equal_the_reference(name: str, config: dict[str, Any]) -> None:
    theirs = reference(name, config)
    ours = opened(name, theirs)
    lengths = [9, 9, 9] if dynamic(ours.architecture) else [9, 4, 7]
    for side in ("left", "right"):
        at = Places.of_lengths(lengths, 9, side)
        expected = theirs(IDS, attention_mask=at.real.long(), position_ids=at.position).logits
        assert (ours(IDS, at) - expected)[at.real].abs().max() < TOLERANCE
        # What follows padding on the left would be predicted from padding: no text has that.
        labels = torch.where(at.real & (at.position > 0), IDS, IGNORE)
        loss = theirs(IDS, attention_mask=at.real.long(), position_ids=at.position, labels=labels).loss
        batch = Batch(IDS, torch.cat([labels[:, 1:], torch.full((3, 1), IGNORE)], 1), at)
        objective = NextToken()
        mean = objective(ours, batch).sums["cross_entropy"] / objective.counts(batch)["cross_entropy"]
        assert abs(mean - loss) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize(("name", "config"), CASES)
def test_a_cache_changes_nothing(name: str, config: dict[str, Any]) -> None:
    theirs = reference(name, config)
    ours = opened(name, theirs)
    at, cache = Places.of_lengths([9, 4, 7], 9, "left"), DenseCache(9)
    if dynamic(ours.architecture):
        ours(IDS[:, :5], at[:, :5], cache)
        with pytest.raises(InputError, match="a cache would be stale"):
            ours(IDS[:, 5:], at[:, 5:], cache)
        return
    expected = theirs(IDS, attention_mask=at.real.long(), position_ids=at.position).logits
    got = torch.cat([ours(IDS[:, :6], at[:, :6], cache), ours(IDS[:, 6:], at[:, 6:], cache)], 1)
    assert (got - expected)[at.real].abs().max() < TOLERANCE


@pytest.mark.parametrize(("name", "config"), CASES)
def test_state_there_and_back(name: str, config: dict[str, Any]) -> None:
    theirs = reference(name, config)
    family, ours = mapping.family(name), opened(name, theirs)
    again = mapping.to_hf(family, ours.architecture, ours.state_dict())
    head = getattr(family, "HEAD", mapping.HEAD)
    state = {head if key == mapping.HEAD else key: tensor for key, tensor in theirs.state_dict().items()}
    assert set(again) == {key for key in state if key != head or not ours.architecture.tied}
    assert all(torch.equal(tensor, state[key]) for key, tensor in again.items())


OLDER = {
    *("rope_theta", "rope_scaling", "rotary_emb_base", "rotary_pct", "partial_rotary_factor"),
    *("rope_local_base_freq", "sliding_window_pattern"),
}
NEWER = {"rope_parameters", "layer_types"}


@pytest.mark.parametrize(("name", "config"), CASES)
def test_config_there_and_back(name: str, config: dict[str, Any]) -> None:
    """Also for those who know the older fields alone, or the newer ones."""
    family = mapping.family(name)
    whole = family.read_config(reference(name, config).config.to_dict())
    written = mapping.written(family, *whole)
    newer = NEWER - ({"layer_types"} if irregular(whole[0]) else set())
    for left_out in (set(), OLDER, newer):
        part = {field: value for field, value in written.items() if field not in left_out}
        assert family.read_config(part) == whole
        assert family.read_config(transformers.AutoConfig.for_model(**part).to_dict()) == whole


@pytest.mark.parametrize(("name", "config"), CASES)
def test_a_field_left_out_is_what_transformers_takes(name: str, config: dict[str, Any]) -> None:
    """Files of the hub leave out what is the default of their class: with the test's sizes, and with none but those
    that a family has to be given."""
    family = mapping.family(name)
    bare = {"hidden_size": 256, "num_attention_heads": 32} if "hidden_size" in config else {"n_embd": 32, "n_head": 4}
    if name == "gemma3_text":
        del bare["num_attention_heads"]
    sizes = {key: config[key] for key in ("intermediate_size", "num_hidden_layers", "n_layer") if key in config}
    if name == "bloom":
        bare = {"hidden_size": 32, "n_head": 4}
    for raw in (config, bare | sizes):
        given = references.copied(raw) | {"vocab_size": VOCAB}
        filled = transformers.AutoConfig.for_model(name, **references.copied(given)).to_dict()
        ours, theirs = (mapping.explicit(family.read_config(fields)[0]) for fields in (given, filled))
        assert ours == theirs


def irregular(a: Architecture) -> bool:
    """Whether only `layer_types` can say which layers are local."""
    last = a.local is None or a.local.layers == tuple(range(a.local.layers[0], a.layers))
    return not last and a.wiring.kind == "pre"  # Gemma's are told by a pattern


@torch.no_grad()
@pytest.mark.parametrize(("name", "config"), CASES)
def test_the_folder_is_opened_by_transformers(tmp_path: Path, name: str, config: dict[str, Any]) -> None:
    ours = opened(name, reference(name, config))
    save_hf(tmp_path / "m", Bundle(ours, None, ours.architecture, "test"))
    with warnings.catch_warnings(record=True):
        theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not any(info.values()), info
    expected = theirs.eval()(IDS).logits
    assert (ours(IDS) - expected).abs().max() < TOLERANCE
    back = load_hf(tmp_path / "m").model
    assert torch.equal(back(IDS), ours(IDS))


@pytest.mark.parametrize("name", DECODERS)
def test_missing_unknown_and_misshapen_tensors_are_errors(name: str) -> None:
    family = mapping.family(name)
    theirs = reference(name, REFERENCES[name][0])
    architecture, vocab_size = family.read_config(theirs.config.to_dict())
    ours = architecture.build(vocab_size)
    good = dict(theirs.state_dict())
    first = family.names(architecture)[1].theirs
    with pytest.raises(InputError, match=f"{first}: this tensor is missing"):
        mapping.from_hf(family, ours, {key: value for key, value in good.items() if key != first})
    with pytest.raises(InputError, match="surprise: unknown tensor"):
        mapping.from_hf(family, ours, good | {"surprise": torch.zeros(1)})
    with pytest.raises(InputError, match="has shape"):
        mapping.from_hf(family, ours, good | {first: good[first][:-1]})


@pytest.mark.parametrize("name", DECODERS)
def test_a_folder_without_its_wrapper_opens(name: str) -> None:
    """The bare model's names, and the buffers that old folders hold."""
    family = mapping.family(name)
    theirs = reference(name, REFERENCES[name][0] | {"tie_word_embeddings": True})
    architecture, vocab_size = family.read_config(theirs.config.to_dict())
    ours = architecture.build(vocab_size)
    bare = {key.removeprefix(family.PREFIX): value for key, value in theirs.state_dict().items()}
    del bare["lm_head.weight"]
    held = {f"h.0{ending}": torch.zeros(1) for ending in family.IGNORED}
    state = mapping.from_hf(family, ours, bare | held)
    assert torch.equal(state["embedding.weight"], theirs.get_input_embeddings().weight)


# ---------------------------------------------------------------- which family


@pytest.mark.parametrize("name", DECODERS)
def test_an_architecture_leaves_as_its_family(name: str) -> None:
    family = mapping.family(name)
    architecture, _ = family.read_config(reference(name, REFERENCES[name][0]).config.to_dict())
    assert mapping.family_of(architecture) is family


@pytest.mark.parametrize(
    ("parts", "family"),
    [
        ({}, "llama"),
        ({"feedforward": {"kind": "geglu", "tanh": True}}, "llama"),
        ({"attention": {"kind": "gqa", "window": 8}}, "mistral"),
        ({"attention": {"kind": "mha", "heads": 3, "head_dim": 8}, "dim": 32}, "mistral"),  # llama's class refuses it
        ({"attention": {"kind": "mqa", "bias": True, "output_bias": False}}, "qwen2"),
        ({"local": {"layers": [1], "window": 8}, "attention": {"kind": "gqa", "norm": True}}, "qwen3"),
        ({"local": {"layers": [0, 1, 2, 3], "window": 8}}, "mistral"),
        ({"local": {"layers": [], "window": 8}}, "llama"),
        ({"position": {"kind": "rope", "scaling": {"kind": "ntk", "by": 4.0}}}, "llama"),
        ({"position": {"kind": "rope_interleaved", "fraction": 0.5}, "attention": "mha"}, "glm"),
    ],
)
def test_of_several_families_the_first_published_is_taken(parts: dict[str, Any], family: str) -> None:
    architecture = parse(Architecture, {"dim": 64, **parts})
    assert family == mapping.family_of(architecture).MODEL_TYPE


@pytest.mark.parametrize(
    ("parts", "place"),
    [
        ({"position": "alibi"}, r"model\.position is not in .*llama, mistral, qwen2, glm"),
        ({"position": "alibi"}, r"model\.norm is not in openai-gpt, .*gpt2, .*gpt_neox, bloom"),
        ({"position": {"kind": "rope", "scaling": {"kind": "logn", "trained": 8}}}, r"model\.position\.scaling is not"),
        ({"position": {"kind": "rope", "scaling": {"kind": "dynamic", "trained": 8}}}, r"scaling\.trained is not"),
        ({"position": {"kind": "rope", "fraction": 0.5}}, r"model\.position\.fraction is not in llama, mistral"),
        ({"norm": {"kind": "rmsnorm", "partial": 0.5}}, r"model\.norm\.partial is not in llama"),
        ({"attention": {"kind": "gqa", "window": 8, "sinks": 2}}, r"model\.attention\.sinks is not in mistral"),
        ({"attention": {"kind": "gqa", "scale": 0.3}}, r"model\.attention\.scale is not in llama.*gemma3_text"),
        ({"feedforward": {"kind": "swiglu", "beta": 2.0}}, r"model\.feedforward\.beta is not in llama"),
        ({"feedforward": "relu"}, r"model\.feedforward is not in llama"),
        ({"attention": "linear", "position": "none"}, r"model\.attention is not in"),
        ({"attention": "lstm", "position": "none"}, r"is not in"),
        ({"local": {"layers": [1], "window": 8, "position": "rope_interleaved"}}, r"local is not in llama"),
        (
            {"local": {"layers": [1], "window": 8, "position": {"kind": "rope", "base": 99.0}}},
            r"model\.local\.position is not in",
        ),
    ],
)
def test_inexpressible_parts_name_themselves(parts: dict[str, Any], place: str) -> None:
    with pytest.raises(InputError, match=place):
        mapping.family_of(parse(Architecture, parts))


@torch.no_grad()
@pytest.mark.parametrize(
    ("parts", "family"),
    [
        ({"position": "rope_interleaved"}, "llama"),
        ({"position": "rope_interleaved", "attention": {"kind": "gqa", "norm": True}}, "qwen3"),
        ({"position": "rope_interleaved", "attention": {"kind": "mha", "bias": True, "output_bias": False}}, "qwen2"),
        ({"position": {"kind": "rope", "scaling": {"kind": "ntk", "by": 8.0}}}, "llama"),
        ({"local": {"layers": [1, 0], "window": 4, "position": {"kind": "rope", "base": 99.0}}}, "mistral"),
    ],
)
def test_another_spelling_leaves_with_equal_logits(parts: dict[str, Any], family: str) -> None:
    """Neighbours-paired weights (GGUF, llama2.c) become halves-paired ones, NTK a larger base."""
    whole = {"layers": 2, "dim": 32, "context": 32, "initial_std": 0.3, **parts}
    pairs = parse(Architecture, whole).build(60)
    for name, parameter in pairs.named_parameters():
        if "norm" in name or "bias" in name:
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * 0.2)
    known = mapping.family_of(pairs.architecture)
    assert family == known.MODEL_TYPE
    architecture, vocab_size = known.read_config(mapping.written(known, pairs.architecture, 60))
    halves = architecture.build(vocab_size)
    halves.load_state_dict(mapping.from_hf(known, halves, mapping.to_hf(known, pairs.architecture, pairs.state_dict())))
    ids = torch.randint(60, (2, 20), generator=torch.Generator().manual_seed(1))
    assert (pairs(ids) - halves(ids)).abs().max() < 1e-5
    back = mapping.from_hf(known, pairs, mapping.to_hf(known, architecture, halves.state_dict()))
    assert all(torch.equal(back[name], tensor) for name, tensor in pairs.state_dict().items())


# ---------------------------------------------------------------- what is refused

LLAMA = REFERENCES["llama"][0] | {"vocab_size": VOCAB}
GEMMA = REFERENCES["gemma3_text"][0] | {"vocab_size": VOCAB}
QWEN = REFERENCES["qwen2"][0] | {"vocab_size": VOCAB}


@pytest.mark.parametrize(
    ("name", "config", "says"),
    [
        ("llama", LLAMA | {"hidden_act": "sillu"}, r"hidden_act: unknown value 'sillu' \(did you mean 'silu'"),
        ("llama", LLAMA | {"rope_scaling": {"rope_type": "longrope"}}, r"rope_type: unknown value 'longrope'"),
        ("llama", LLAMA | {"rope_scaling": {"type": "linear"}}, r"rope_parameters\.factor: is missing, which linear"),
        ("llama", LLAMA | {"rope_scaling": {"type": "linear", "factor": 0.5}}, r"rope_parameters\.scaling.by"),
        ("llama", LLAMA | {"rope_parameters": {"partial_rotary_factor": 0.5}}, r"partial_rotary_factor: whole heads"),
        ("mistral", LLAMA | {"partial_rotary_factor": 0.5}, r"partial_rotary_factor: whole heads"),
        ("qwen2", QWEN | {"layer_types": ["full_attention"]}, r"layer_types: names 1 layers"),
        ("qwen2", QWEN | {"layer_types": ["chunked_attention"] * 2}, r"layer_types: unknown value 'chunked_attention'"),
        ("qwen2", QWEN | {"layer_types": ["sliding_attention"] * 2}, r"layer_types: has sliding_attention, but"),
        ("gemma3_text", GEMMA | {"final_logit_softcapping": 30.0}, r"final_logit_softcapping: 30\.0 is not built"),
        ("gemma3_text", GEMMA | {"attn_logit_softcapping": 50.0}, r"attn_logit_softcapping: 50\.0 is not built"),
        ("gemma3_text", GEMMA | {"use_bidirectional_attention": True}, r"use_bidirectional_attention: true is not"),
        ("gemma3_text", GEMMA | {"hidden_activation": "silly"}, r"hidden_activation: unknown value 'silly'"),
        (
            "gemma3_text",
            GEMMA | {"sliding_window": None},
            r"layer_types: has sliding_attention, but",
        ),
        ("gemma3_text", GEMMA | {"query_pre_attn_scalar": 0}, r"query_pre_attn_scalar: 0 has no inverse root"),
        ("gemma3_text", GEMMA | {"hidden_activation": None}, r"hidden_activation: unknown value 'None'"),
        ("mistral", LLAMA | {"sliding_window": 0}, r"sliding_window: 0 is no number of tokens"),
        ("qwen2", QWEN | {"use_sliding_window": True, "sliding_window": "far"}, r"sliding_window: 'far' is no number"),
        ("gpt_neox", {**LLAMA, "hidden_act": "gelu_fast"}, r"hidden_act: unknown value 'gelu_fast'"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, r"apply_residual\w+: true is not built"),
        ("openai-gpt", {"afn": "tanh"}, r"afn: unknown value 'tanh'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, r"scale_attn_by_inverse_layer_idx: true is not built"),
    ],
)
def test_what_is_not_built_names_its_field(name: str, config: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        mapping.family(name).read_config(config)


@pytest.mark.parametrize("name", ["mapping", "rope", "openai_gpt", "__init__", "../hf", "LLAMA", ""])
def test_only_a_family_is_one(name: str) -> None:
    with pytest.raises(InputError, match=r"allowed: .*openai-gpt"):
        mapping.family(name)
