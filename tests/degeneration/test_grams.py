"""Long n-grams of many texts against brute force."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.degeneration.grams import grams, sharing

TEXTS = st.lists(st.lists(st.integers(0, 2), max_size=12), max_size=6)


@settings(deadline=None, max_examples=200)
@given(TEXTS, st.integers(1, 5))
def test_windows_and_in_how_many_texts_they_stand(texts: list[list[int]], n: int) -> None:
    each = [(row, tuple(ids[at : at + n])) for row, ids in enumerate(texts) for at in range(len(ids) - n + 1)]
    found = grams(texts, n)
    assert [(int(row), tuple(found.window(place))) for place, row in enumerate(found.text_N)] == each
    wanted = [len({row for row, other in each if other == window}) for _, window in each]
    assert found.texts_with().tolist() == wanted
    shared = {row for (row, _), count in zip(each, wanted, strict=True) if count > 1}
    assert sharing(texts, n) == [row in shared for row in range(len(texts))]
