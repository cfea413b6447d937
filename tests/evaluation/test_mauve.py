"""The light MAUVE: its ends, its symmetry, and the area against the formula on a fine grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmlab.errors import InputError
from llmlab.evaluation.mauve import SCALE, area, kmeans, mauve


def drawn(seed: int, count: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)) + shift


def test_one_set_against_itself_is_1_and_strangers_are_near_0() -> None:
    same = drawn(0, 40)
    assert mauve(same, same.clone(), 8) == pytest.approx(1.0)
    assert mauve(same, drawn(1, 40), 8) > 0.8
    assert mauve(same, drawn(1, 40, 10.0), 8) < 0.1


def test_the_further_apart_the_lower() -> None:
    told = [mauve(drawn(0, 200), drawn(1, 200, shift), 8) for shift in (0.0, 0.5, 1.0, 2.0)]
    assert told == sorted(told, reverse=True)
    assert told[0] - told[-1] > 0.5


def test_the_same_seed_gives_the_same_value_and_sides_may_be_exchanged() -> None:
    a, b = drawn(0, 50), drawn(1, 80, 0.7)
    assert mauve(a, b, 6, 3) == mauve(a, b, 6, 3)
    of_N = kmeans(torch.cat([a, b]).double(), 6, 3)
    p, q = (np.bincount(part.numpy(), minlength=6) + 0.5 for part in (of_N[:50], of_N[50:]))
    assert area(p / p.sum(), q / q.sum()) == pytest.approx(area(q / q.sum(), p / p.sum()))


@given(st.lists(st.floats(0.05, 1), min_size=3, max_size=3), st.lists(st.floats(0.05, 1), min_size=3, max_size=3))
def test_the_area_is_that_of_the_curve(p: list[float], q: list[float]) -> None:
    """Against the integral of y dx over the mixture's weight, by the middle of ten thousand small steps."""
    p_K, q_K = (np.array(one) / sum(one) for one in (p, q))
    weight = np.linspace(0, 1, 10_001)
    mixed = weight[:, None] * p_K + (1 - weight[:, None]) * q_K
    x, y = (np.exp(-SCALE * (one * np.log(one / mixed)).sum(1)) for one in (q_K, p_K))
    # Beside the curve from weight 0 to 1 the corners (1, 0) and (0, 1) belong to it, along straight edges.
    inner = float((-(x[1:] - x[:-1]) * (y[1:] + y[:-1]) / 2).sum())
    edge = x[-1] * (1 + y[-1]) / 2
    assert area(p_K, q_K) == pytest.approx(inner + edge, abs=0.03)
    assert 0 <= area(p_K, q_K) <= 1 + 1e-9


def test_kmeans_finds_heaps_that_are_apart() -> None:
    heaps = torch.cat([drawn(seed, 30) * 0.1 + 5 * seed for seed in range(4)]).double()
    of_N = kmeans(heaps, 4, 0).view(4, 30)
    assert all(len(heap.unique()) == 1 for heap in of_N)
    assert len(of_N[:, 0].unique()) == 4
    assert kmeans(torch.zeros(5, 2).double(), 3, 0).unique().tolist() == [0]  # all in one place: nothing to divide


def test_empty_sets_and_too_many_clusters_are_refused() -> None:
    with pytest.raises(InputError, match="empty"):
        mauve(torch.zeros(0, 4), drawn(0, 3)[:, :4], 2)
    with pytest.raises(InputError, match="9 clusters of 6 texts"):
        mauve(drawn(0, 3), drawn(1, 3), 9)
