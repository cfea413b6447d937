"""Mixing: bytes come out as weights and epochs say, the same whatever the order of documents."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.data.mix import AsRead, Epochs, Weights, times

DOCUMENTS = st.lists(st.tuples(st.integers(0, 1), st.integers(1, 50)), min_size=2, max_size=40)


def arrays(documents: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    origin, sizes = np.array(documents, np.int64).T
    return origin, sizes, np.random.default_rng(0).integers(0, 2**63, len(documents)).astype(np.uint64)


@given(DOCUMENTS, st.floats(0, 3), st.floats(0, 3), st.integers(0, 9))
def test_bytes_are_the_epochs_to_one_document(documents: list[tuple[int, int]], a: float, b: float, seed: int) -> None:
    origin, sizes, keys = arrays(documents)
    often, epochs = times(Epochs(epochs=(a, b), seed=seed), origin, sizes, keys, 2)
    assert epochs == [a, b]
    for number, wanted in enumerate((a, b)):
        own = origin == number
        there = int(sizes[own].sum())
        assert abs(int((often * sizes)[own].sum()) - wanted * there) <= (sizes[own].max(initial=0) + 1e-3)
        assert set(often[own]) <= {int(wanted), int(wanted) + 1}
    order = np.random.default_rng(1).permutation(len(origin))
    again, _ = times(Epochs(epochs=(a, b), seed=seed), origin[order], sizes[order], keys[order], 2)
    assert (again == often[order]).all()


@given(DOCUMENTS, st.floats(0.1, 5), st.floats(0.1, 5), st.floats(0.5, 4))
def test_weights_are_shares_and_no_source_is_read_too_often(
    documents: list[tuple[int, int]], a: float, b: float, most: float
) -> None:
    origin, sizes, keys = arrays(documents)
    _, epochs = times(Weights(weights=(a, b), epochs=most), origin, sizes, keys, 2)
    there = np.bincount(origin, sizes, minlength=2)
    used = np.array(epochs) * there
    assert max(epochs) == pytest.approx(most)
    if (there > 0).all():
        assert used[0] * b == pytest.approx(used[1] * a)


def test_another_seed_draws_other_documents_and_more_epochs_keep_them() -> None:
    origin, sizes, keys = arrays([(0, 10)] * 100)
    half, _ = times(Epochs(epochs=(0.5,)), origin, sizes, keys, 1)
    other, _ = times(Epochs(epochs=(0.5,), seed=1), origin, sizes, keys, 1)
    more, _ = times(Epochs(epochs=(0.75,)), origin, sizes, keys, 1)
    assert half.sum() == other.sum() == 50
    assert (half != other).any()
    assert (more >= half).all()
    assert times(AsRead(), origin, sizes, keys, 1)[0].tolist() == [1] * 100
