"""XLNet: two streams under any order of prediction, and the memory of the segment before."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.inference.cache import DenseCache
from llmlab.model.places import Places

from .references import REFERENCES, reference
from .sides import opened, texts

LENGTH = 9
LINE = torch.arange(LENGTH).expand(3, -1)
THEIRS = reference("xlnet", REFERENCES["xlnet"][0])
OURS = opened("xlnet", THEIRS)


def reference_mask(at: Places) -> torch.Tensor:
    """1 where a token does not see another: what is known sees itself whole, the others what comes before them. (Of
    itself the content stream of the reference sees each token anyway.)"""
    return 1 - at.sees(at).float() + torch.eye(LENGTH) * (at.order > 0).float()[:, :, None]


@given(st.integers(0, 2**20), st.integers(0, 6), st.booleans())
@settings(deadline=None, max_examples=15)
@torch.no_grad()
def test_both_streams_under_a_permutation(seed: int, known: int, pairs: bool) -> None:
    """Of each row the first `known` tokens of a random order are seen by all; the others follow one by one.

    A query that sees nothing takes nothing. In the reference it takes the mean of every token, its own and later ones
    included, so that one is left out here.
    """
    generator = torch.Generator().manual_seed(seed)
    rank = torch.stack([torch.randperm(LENGTH, generator=generator) for _ in range(3)])
    segment = LINE // 4 if pairs else None
    at, ids = Places(LINE, (rank - known + 1).clamp(min=0), torch.zeros_like(LINE), segment), texts()
    mask, everything = reference_mask(at), torch.eye(LENGTH).expand(3, -1, -1)
    said = THEIRS(ids, perm_mask=mask, target_mapping=everything, token_type_ids=segment).logits
    asked = at.sees(at, strict=True).any(-1)
    assert asked.sum() == 3 * (LENGTH - max(known, 1))
    assert (OURS.logits(OURS.queries(ids, at)) - said)[asked].abs().max() < 1e-4
    content = THEIRS(ids, perm_mask=mask, token_type_ids=segment).logits
    assert (OURS(ids, at) - content).abs().max() < 1e-4


@pytest.mark.parametrize("pairs", [False, True])
@torch.no_grad()
def test_memory_is_the_cache(pairs: bool) -> None:
    """The second segment given the first, and the third given both."""
    ids, mems, cache = torch.cat([texts(), texts().flip(0)], 1), None, DenseCache(18)
    segment = torch.zeros(3, 18, dtype=torch.long)
    for start, end in ((0, 5), (5, 12), (12, 18)):
        said = THEIRS(
            ids[:, start:end], mems=mems, use_mems=True, token_type_ids=segment[:, start:end] if pairs else None
        )
        mems = said.mems
        at = Places.causal(3, end - start, start=start).bidirectional()
        if pairs:
            at = Places(at.position, at.order, at.document, segment[:, start:end])
        assert (OURS.logits(OURS.hidden(ids[:, start:end], at, cache)) - said.logits).abs().max() < 1e-4


@torch.no_grad()
def test_queries_with_memory() -> None:
    ids, cache = torch.cat([texts(), texts().flip(0)], 1), DenseCache(18)
    mems = THEIRS(ids[:, :LENGTH], use_mems=True).mems
    OURS.hidden(ids[:, :LENGTH], Places.causal(3, LENGTH).bidirectional(), cache)
    order = torch.tensor([[3, 1, 2, 9, 5, 4, 8, 7, 6]]).expand(3, -1)
    at = Places(LINE + LENGTH, order, torch.zeros_like(LINE))
    everything = torch.eye(LENGTH).expand(3, -1, -1)
    said = THEIRS(ids[:, LENGTH:], mems=mems, perm_mask=reference_mask(at), target_mapping=everything)
    assert (OURS.logits(OURS.queries(ids[:, LENGTH:], at, cache)) - said.logits).abs().max() < 1e-4
