"""Measures of repetition against brute force."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.evaluation.repetition import copied, distinct, repetition, self_bleu

ROWS = st.lists(st.integers(0, 3), max_size=20)


@given(st.lists(st.integers(0, 3), max_size=20), st.integers(1, 4))
@settings(deadline=None)
def test_repetition_counts_n_grams_seen_before(ids, n):
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    repeats = sum(gram in grams[:i] for i, gram in enumerate(grams))
    assert repetition(ids, n) == pytest.approx(repeats / len(grams) if grams else 0.0)


def test_repetition_and_distinct_at_their_ends():
    assert repetition([7] * 100) == pytest.approx(1 - 1 / 97)
    assert repetition(range(50)) == 0
    assert repetition([1, 2], n=4) == 0
    assert distinct([[1, 2, 3], [1, 2, 3]]) == 0.5
    assert distinct([[1], []]) == 0


@given(ROWS, ROWS, st.integers(1, 4))
@settings(deadline=None)
def test_copied_marks_every_token_of_a_shared_run(ids, prompt, n):
    held = [
        any(ids[s : s + n] == prompt[p : p + n] for s in range(max(0, i - n + 1), i + 1) if s + n <= len(ids)
            for p in range(len(prompt) - n + 1))
        for i in range(len(ids))
    ]  # fmt: skip
    assert copied(ids, prompt, n) == pytest.approx(sum(held) / len(ids) if ids else 0.0)


def test_self_bleu_at_its_ends():
    assert self_bleu([list(range(9))] * 3) == pytest.approx(1)
    assert self_bleu([list(range(9)), list(range(50, 59))]) < 0.1
    assert self_bleu([[1, 2]]) == self_bleu([]) == self_bleu([[], []]) == 0


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=12), min_size=2, max_size=4), st.randoms())
@settings(deadline=None)
def test_self_bleu_is_a_share_and_minds_no_order(texts, random):
    value, shuffled = self_bleu(texts), list(texts)
    random.shuffle(shuffled)
    assert 0 <= value <= 1
    assert self_bleu(shuffled) == pytest.approx(value)
