"""Logits equal to transformers on tiny random models, read and written, for every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llmlab.errors import InputError
from llmlab.families import mapping
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture
from llmlab.recipe import parse

transformers = pytest.importorskip("transformers", reason="the reference implementation is a test dependency")

# One entry a family, as many shapes as it has: config fields of the reference.
REFERENCES: dict[str, list[dict[str, Any]]] = {
    "llama": [
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 16,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
        },
    ],
    "gpt2": [
        {"n_embd": 32, "n_layer": 2, "n_head": 4},
        {
            "n_embd": 32,
            "n_layer": 1,
            "n_head": 2,
            "n_inner": 40,
            "activation_function": "relu",
            "tie_word_embeddings": False,
        },
    ],
}
# Families whose code lies beside their weights have recorded figures and tests of their own.
THERE = [name for name in mapping.known() if not getattr(mapping.family(name), "REMOTE", False)]
CASES = [(name, config) for name in THERE for config in REFERENCES[name]]


def reference(name: str, config: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    small = {"vocab_size": 60, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None, "initializer_range": 0.3}
    made = transformers.AutoConfig.for_model(name, **small, **config)
    return transformers.AutoModelForCausalLM.from_config(made).eval().float()


@pytest.mark.parametrize(("name", "config"), CASES)
def test_logits_equal_the_reference(name: str, config: dict[str, Any]) -> None:
    theirs = reference(name, config)
    with torch.no_grad():
        for parameter in theirs.parameters():  # gains and biases that a test can see
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    family = mapping.family(name)
    architecture, vocab_size = family.read_config(theirs.config.to_dict())
    ours = architecture.build(vocab_size).eval()
    ours.load_state_dict(mapping.from_hf(family, ours, theirs.state_dict()))
    lengths, width = [9, 4, 7], 9
    ids = torch.randint(60, (3, width), generator=torch.Generator().manual_seed(1))
    for side in ("left", "right"):
        at = Places.of_lengths(lengths, width, side)
        with torch.no_grad():
            expected = theirs(ids, attention_mask=at.real.long(), position_ids=at.position).logits
        got = ours(ids, at)
        assert (got - expected)[at.real].abs().max() < 1e-4
    again = mapping.to_hf(family, architecture, ours.state_dict())
    assert set(again) == {key for key in theirs.state_dict() if key != "lm_head.weight" or not architecture.tied}
    assert all(torch.equal(tensor, theirs.state_dict()[key]) for key, tensor in again.items())


@pytest.mark.parametrize(("name", "config"), CASES)
def test_config_there_and_back(name: str, config: dict[str, Any]) -> None:
    family = mapping.family(name)
    architecture, vocab_size = family.read_config(reference(name, config).config.to_dict())
    written = mapping.written(family, architecture, vocab_size)
    assert family.read_config(written) == (architecture, vocab_size)
    opened = transformers.AutoConfig.for_model(**written)
    assert family.read_config(opened.to_dict()) == (architecture, vocab_size)


@pytest.mark.parametrize("name", THERE)
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


def test_interleaved_rotary_leaves_as_llama() -> None:
    """Neighbours-paired weights (GGUF, llama2.c) become halves-paired ones with the same logits."""
    parts = {"layers": 2, "dim": 32, "context": 32, "initial_std": 0.3, "position": "rope_interleaved"}
    pairs = parse(Architecture, parts).build(60)
    llama = mapping.family("llama")
    architecture, vocab_size = llama.read_config(mapping.written(llama, pairs.architecture, 60))
    halves = architecture.build(vocab_size)
    halves.load_state_dict(mapping.from_hf(llama, halves, mapping.to_hf(llama, pairs.architecture, pairs.state_dict())))
    ids = torch.randint(60, (2, 20), generator=torch.Generator().manual_seed(1))
    assert (pairs(ids) - halves(ids)).abs().max() < 1e-5
    back = mapping.from_hf(llama, pairs, mapping.to_hf(llama, architecture, halves.state_dict()))
    assert all(torch.equal(back[name], tensor) for name, tensor in pairs.state_dict().items())


def test_inexpressible_parts_name_themselves() -> None:
    with pytest.raises(
        InputError,
        match=r"gpt2: model.norm rmsnorm is not a part of gpt2.*llama: model.position alibi is not a part of llama",
    ):
        mapping.family_of(parse(Architecture, {"position": "alibi"}))
