"""The memory of every cache by its formula, to the byte: against the buffers themselves, for every pair of parts."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from llmlab.inference import pages
from llmlab.inference.answering import Answering
from llmlab.inference.cache import RowCache
from llmlab.inference.caches import CacheKind, Rolling
from llmlab.inference.fast import FastModel
from llmlab.inference.plain_step import PlainModel
from llmlab.inference.stepper import Piece
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture, Transformer

KINDS: list[Any] = [*(member() for member in get_args(get_args(CacheKind)[0])), Rolling(window=5, sinks=3)]
VOCABULARY, CONTEXT = 19, 24


def built(**fields: Any) -> Transformer:
    told = {"layers": 3, "dim": 32, "context": CONTEXT} | fields
    return Architecture.model_validate(told).build(VOCABULARY, seed=0).eval()


def read(model: Any, cache: RowCache, rows: int, tokens: int) -> int:
    """The bytes that the buffers really have: every tensor that the cache holds, wherever it holds it."""
    with torch.inference_mode():
        model.hidden(torch.ones(rows, tokens, dtype=torch.int64), Places.causal(rows, tokens), cache)

    def tensors(held: Any) -> list[torch.Tensor]:
        if isinstance(held, torch.Tensor):
            return [held]
        if isinstance(held, dict):
            return [tensor for value in held.values() for tensor in tensors(value)]
        if isinstance(held, tuple):
            return [tensor for value in held for tensor in tensors(value)]
        return tensors(vars(held)) if hasattr(held, "__dict__") else []

    parts = [value for name, value in vars(cache).items() if name != "_writing"]
    return sum(tensor.untyped_storage().nbytes() for part in parts for tensor in tensors(part))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.kind}-{getattr(kind, 'window', None)}")
def test_a_cache_takes_what_its_formula_says(mixing: tuple[dict[str, Any], dict[str, Any]], kind: Any) -> None:
    position, attention = mixing
    model = built(position=position, attention=attention)
    a = model.architecture
    if isinstance(kind, Rolling) and not (a.position.moves and a.attention.scores):
        return  # refused, as test_caches has it
    for rows, capacity, tokens in ((1, 17, 9), (3, 10, 10)):
        cache = kind.build(capacity, a)
        assert cache.nbytes == 0
        measured = read(model, cache, rows, tokens)
        assert measured == cache.nbytes == kind.nbytes(a, rows, capacity)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.kind}-{getattr(kind, 'window', None)}")
@pytest.mark.parametrize(
    "fields",
    [
        {"local": {"layers": [1], "window": 4}},
        {"shared": True, "attention": {"kind": "mqa", "heads": 4}},
        {"attention": {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_dim": 24}},
    ],
    ids=["windows", "shared", "wide heads"],
)
def test_windows_shared_blocks_and_half_precision(kind: Any, fields: dict[str, Any]) -> None:
    model = built(**fields).to(torch.bfloat16)
    cache = kind.build(12, model.architecture)
    assert read(model, cache, 2, 7) == kind.nbytes(model.architecture, 2, 12, number=2)


def test_an_encoder_decoder_keeps_its_prompts_beside() -> None:
    model = built(encoder_layers=2, position="t5", start_id=0, attention={"kind": "mha", "heads": 4, "head_dim": 12})
    a, prompts, kind = model.architecture, [[1] * 7, [2] * 5], KINDS[0]
    with torch.inference_mode():
        answering = Answering.to(model, prompts)
        assert read(answering, cache := kind.build(6, a), 2, 1) == cache.nbytes == kind.nbytes(a, 2, 6)
    kept = answering.memory.kept or {}
    held = [answering.memory.states, *(tensor for pair in kept.values() for tensor in pair)]
    assert sum(tensor.untyped_storage().nbytes() for tensor in held) == Answering.nbytes(a, 2, 7)


def test_pages_take_what_their_formula_says() -> None:
    model = built(attention={"kind": "gqa", "heads": 4, "kv_heads": 2})
    plain = PlainModel(model, 5)
    plain.step([Piece([1, 2, 3], 0, [2])], [2])
    pools = [pool for pair in plain._pools.values() for pool in pair]
    assert sum(pool.untyped_storage().nbytes() for pool in pools) == pages.nbytes(model.architecture, 5, number=4)


def test_the_native_step_takes_what_its_formula_says() -> None:
    from llmlab.inference import native

    sizes = {"layers": 2, "dim": 64, "context": 32, "attention": {"kind": "gqa", "heads": 2, "kv_heads": 1}}
    sizes["feedforward"] = {"kind": "swiglu", "width": 96}
    model = Architecture.model_validate(sizes).build(64, seed=0).eval()
    if (reason := native.available()) is not None:
        pytest.skip(f"the native step cannot run here: {reason}")
    fast = FastModel(model, "int8", pages=7)
    assert fast._keys.nbytes + fast._values.nbytes == pages.nbytes(model.architecture, 7)
