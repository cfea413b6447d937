"""Text figures against brute force."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.evaluation.metrics import edit_distance, edit_similarity, exact_match

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
