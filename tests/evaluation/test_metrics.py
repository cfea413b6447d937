"""Text figures against brute force."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.evaluation.metrics import distinct, edit_distance, edit_similarity, exact_match, repetition

SHORT = st.text("ab汉🙂", max_size=9)


def brute(a: str, b: str) -> int:
    @cache
    def go(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        return min(go(i - 1, j) + 1, go(i, j - 1) + 1, go(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    return go(len(a), len(b))


@given(SHORT, SHORT)
@settings(deadline=None, max_examples=300)
def test_edit_distance_is_the_recursion(a, b):
    assert edit_distance(a, b) == edit_distance(b, a) == brute(a, b)
    assert 0 <= edit_similarity(a, b) <= 1
    assert (edit_similarity(a, b) == 1) == (a == b)


def test_edit_similarity_of_known_texts():
    assert edit_distance("kitten", "sitting") == 3
    assert edit_similarity("kitten", "sitting") == pytest.approx(1 - 3 / 7)
    assert edit_similarity("", "") == 1
    assert edit_similarity("", "abc") == 0


@pytest.mark.parametrize(
    ("answer", "reference", "equal"),
    [
        (" 42\n", "42", True), ("a  b", "a b", True), ("caf\u0065\u0301", "café", True),
        ("Yes", "yes", False), ("42.", "42", False), ("", "0", False),
    ],
)  # fmt: skip
def test_exact_match_forgives_white_space_and_nothing_else(answer, reference, equal):
    assert exact_match(answer, reference) is equal


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
