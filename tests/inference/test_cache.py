"""Cached logits are uncached logits: any position encoding, any attention, ragged rows, any split of the prompt."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmlab.errors import InputError
from llmlab.inference.cache import DenseCache, PromptCache
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture, Transformer

VOCABULARY, CONTEXT = 23, 24


def tiny(position: Any = "rope", attention: Any = "gqa") -> Transformer:
    sizes = {"layers": 2, "dim": 32, "context": CONTEXT, "initial_std": 0.3}
    architecture = Architecture.model_validate({**sizes, "position": position, "attention": attention})
    return architecture.build(VOCABULARY, seed=3).eval()


def ragged(lengths: list[int], seed: int) -> tuple[Tensor, Places]:
    width = max(lengths)
    ids = torch.randint(VOCABULARY, (len(lengths), width), generator=torch.Generator().manual_seed(seed))
    return ids, Places.of_lengths(lengths, width, "left")


@settings(max_examples=4, deadline=None)
@given(data=st.data())
def test_any_split_of_ragged_rows_gives_the_logits_of_one_pass(
    mixing: tuple[dict[str, Any], dict[str, Any]], data: st.DataObject
) -> None:
    model = tiny(*mixing)
    lengths = data.draw(st.lists(st.integers(1, CONTEXT - 2), min_size=1, max_size=4))
    ids, at = ragged(lengths, data.draw(st.integers(0, 99)))
    width = max(lengths)
    cuts = sorted(data.draw(st.sets(st.integers(1, width - 1)))) if width > 1 else []
    cache = DenseCache(width)
    with torch.inference_mode():
        whole = model(ids, at)
        pieces = [
            model(ids[:, start:end], at[:, start:end], cache)
            for start, end in zip([0, *cuts], [*cuts, width], strict=True)
        ]
        split = torch.cat(pieces, 1)
        torch.testing.assert_close(split[at.real], whole[at.real], rtol=1e-4, atol=1e-4)
        for row, length in enumerate(lengths):  # and padding is as if it were not there (trap 14)
            alone = model(ids[row : row + 1, width - length :])
            torch.testing.assert_close(split[row : row + 1, width - length :], alone, rtol=1e-4, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(rows=st.lists(st.integers(0, 4), min_size=1, max_size=5, unique=True), seed=st.integers(0, 9))
def test_rows_that_are_kept_go_on_as_if_the_others_had_never_been(rows: list[int], seed: int) -> None:
    model = tiny()
    ids, at = ragged([3, 7, 5, 1, 6], seed)
    after = torch.randint(VOCABULARY, (5, 1), generator=torch.Generator().manual_seed(seed + 1))
    next_at = Places(*(torch.tensor([[3], [7], [5], [1], [6]]) for _ in range(2)), torch.zeros(5, 1, dtype=torch.int64))
    with torch.inference_mode():
        both = DenseCache(8), DenseCache(8)
        for cache in both:
            model(ids, at, cache)
        expected = model(after, next_at, both[0])[rows]
        both[1].keep_rows(rows)
        got = model(after[rows], next_at[rows], both[1])
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_trim_takes_back_what_came_after() -> None:
    model = tiny()
    ids, at = ragged([8], 1)
    cache = DenseCache(8)
    with torch.inference_mode():
        whole = model(ids, at, cache)
        cache.trim(5)
        again = model(ids[:, 5:], at[:, 5:], cache)
    assert cache.length == 8
    torch.testing.assert_close(again, whole[:, 5:], rtol=1e-5, atol=1e-5)


def test_overflow_says_how_much_was_asked_and_how_much_there_is() -> None:
    cache = DenseCache(4)
    cache.extend(Places.causal(1, 3))
    with pytest.raises(InputError, match="5 tokens do not fit into a cache of 4"):
        cache.extend(Places.causal(1, 2, start=3))


@pytest.mark.parametrize(
    ("held", "prompt", "shared"),
    [
        ([1, 2, 3], [1, 2, 3, 4], 3),
        ([1, 2, 3], [1, 2, 9, 4], 2),
        ([1, 2, 3], [1, 2, 3], 2),  # the last token is always computed again
        ([1, 2, 3], [1, 2], 1),
        ([], [1], 0),
        ([5], [1, 5], 0),
    ],
)
def test_a_prompt_cache_keeps_the_common_beginning(held: list[int], prompt: list[int], shared: int) -> None:
    memory = PromptCache(8)
    memory.ids = list(held)
    memory.dense.length = len(held)
    assert memory.reuse(prompt) == shared
    assert memory.ids == held[:shared]
    assert memory.dense.length == shared
