"""A request that draws nothing: its prompt is read, scored where that is asked for, and that is all."""

from __future__ import annotations

import pytest
import torch

from llmlab.errors import InputError
from llmlab.inference.batching import NO_ID, Batching, Request
from llmlab.inference.fast import FastModel
from llmlab.inference.native import missing
from llmlab.inference.sampling import Sampling
from llmlab.model.transformer import Architecture

pytestmark = pytest.mark.skipif(missing() is not None, reason=f"plain path only: {missing()}")
CONTEXT = 48


def batching() -> Batching:
    sizes = {
        "layers": 2,
        "dim": 64,
        "context": CONTEXT,
        "attention": {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_dim": 32},
        "feedforward": {"kind": "swiglu", "width": 96},
    }
    return Batching(FastModel(Architecture.model_validate(sizes).build(96, seed=3).eval(), "bf16", 9), step_tokens=16)


@pytest.mark.parametrize("size", [1, 2, 16, 17, CONTEXT])
def test_a_prompt_that_is_only_read_is_scored_as_one_that_is_answered(size: int) -> None:
    ids = torch.randint(0, 96, (size,), generator=torch.Generator().manual_seed(size)).tolist()
    fresh = batching()
    (token,) = fresh.stream(Request(ids, Sampling(), echo=True, likeliest=2, draws=False))
    assert (token.id, token.finish_reason, len(token.prompt)) == (NO_ID, "length", size - 1)
    assert (fresh.busy, fresh.pages.free) == (False, 9)
    if size < CONTEXT:
        first = next(batching().stream(Request(ids, Sampling(), echo=True, likeliest=2)))
        assert first.prompt == token.prompt
    if size > 1:
        later = Request(ids, Sampling(), echo=True, echo_from=size // 2, likeliest=2, draws=False)
        assert next(batching().stream(later)).prompt == token.prompt[size // 2 - 1 :]
    (unscored,) = fresh.stream(Request(ids, Sampling(), draws=False))
    assert unscored.prompt == ()


def test_others_go_on_beside_it_and_too_long_a_prompt_is_refused() -> None:
    shared = batching()
    want = [token.id for token in batching().stream(Request([1, 2], Sampling(max_new_tokens=20), seed=5))]
    stream = shared.stream(Request([1, 2], Sampling(max_new_tokens=20), seed=5))
    got = [next(stream).id]
    shared.submit(Request(list(range(40)), Sampling(), echo=True, draws=False))
    assert got + [token.id for token in stream] == want
    with pytest.raises(InputError, match=f"has {CONTEXT + 1} tokens, the context holds {CONTEXT}"):
        shared.submit(Request([1] * (CONTEXT + 1), Sampling(), draws=False))
