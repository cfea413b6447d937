from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.errors import InputError
from llmlab.longtext.chunk import spans, spans_at, split_probability, whole

sizes = st.integers(1, 30).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size - 1)))


@given(length=st.integers(0, 300), cut=sizes)
def test_spans_cover_in_order_and_none_lies_in_another(length: int, cut: tuple[int, int]) -> None:
    size, overlap = cut
    found = spans(length, size, overlap)
    assert set(range(length)) == {unit for start, end in found.tolist() for unit in range(start, end)}
    assert (found[:-1, 1] - found[:-1, 0] == size).all()
    assert (np.diff(found, axis=0) > 0).all()
    assert (found[1:, 0] - found[:-1, 1] == -overlap).all()


@given(cut=sizes, width=st.integers(1, 50), strides=st.integers(1, 4))
def test_the_law_is_what_counting_gives(cut: tuple[int, int], width: int, strides: int) -> None:
    size, overlap = cut
    stride = size - overlap
    found = spans(stride * (strides + width + 2) + size, size, overlap)
    starts = np.arange(stride * strides, dtype=np.int64)  # whole strides, far from the end
    by_hand = [any(a <= start and start + width <= b for a, b in found.tolist()) for start in starts.tolist()]
    assert whole(found, starts, width).tolist() == by_hand
    assert 1 - np.mean(by_hand) == pytest.approx(split_probability(width, size, overlap))
    if overlap >= width - 1:
        assert all(by_hand)
    if not overlap:
        assert split_probability(width, size) == min(1, (width - 1) / stride)


@given(length=st.integers(0, 200), cut=sizes, cuts=st.lists(st.integers(0, 200), max_size=40))
def test_spans_at_cuts_cover_go_forward_and_are_no_longer_than_asked(
    length: int, cut: tuple[int, int], cuts: list[int]
) -> None:
    size, overlap = cut
    places = np.array(sorted({place for place in cuts if place <= length}), np.int64)
    found = spans_at(places, length, size, overlap)
    assert set(range(length)) == {unit for start, end in found.tolist() for unit in range(start, end)}
    assert (found[:, 1] - found[:, 0] <= size).all()
    assert (np.diff(found, axis=0) > 0).all()


def test_spans_at_cuts_end_at_them() -> None:
    assert spans_at(np.array([4, 9, 12]), 20, 6).tolist() == [[0, 4], [4, 9], [9, 12], [12, 18], [18, 20]]
    assert spans_at(np.array([4, 6, 9, 12]), 12, 6, 3).tolist() == [[0, 6], [4, 9], [6, 12]]


@pytest.mark.parametrize(("size", "overlap"), [(0, 0), (-1, 0), (5, -1), (5, 5), (5, 9)])
def test_what_goes_nowhere_is_refused(size: int, overlap: int) -> None:
    with pytest.raises(InputError):
        spans(10, size, overlap)
    with pytest.raises(InputError):
        spans_at(np.array([3]), 10, size, overlap)
