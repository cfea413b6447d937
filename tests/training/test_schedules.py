"""Shapes of the learning rate."""

import math
from itertools import pairwise
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from llmlab.training.schedules import Constant, Cosine, Linear, Schedule, WarmupStableDecay

KINDS = get_args(get_args(Schedule)[0])
shares = st.floats(0.0, 1.0)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=60)
@given(warmup=shares, total=st.integers(1, 300))
def test_rises_to_one_and_never_again(kind: type, warmup: float, total: int) -> None:
    schedule = kind(warmup=warmup)
    scales = [schedule.scale(step, total) for step in range(total)]
    assert all(0.0 < scale <= 1.0 for scale in scales)
    rise = round(warmup * total)
    assert all(a < b for a, b in pairwise(scales[: rise + 1]))
    assert all(a >= b for a, b in pairwise(scales[rise:]))
    if rise < total:
        assert scales[rise] == 1.0


def test_shapes_by_hand() -> None:
    def scales(schedule: Schedule) -> list[float]:
        return [round(schedule.scale(step, 10), 6) for step in range(10)]

    assert scales(Constant(warmup=0.2)) == [round(1 / 3, 6), round(2 / 3, 6), *[1.0] * 8]
    assert scales(Linear(warmup=0.0)) == [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    assert scales(WarmupStableDecay(warmup=0.0, decay=0.5)) == [*[1.0] * 6, 0.8, 0.6, 0.4, 0.2]
    cosine = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / 10)) for step in range(10)]
    assert scales(Cosine(warmup=0.0, floor=0.1)) == [round(value, 6) for value in cosine]


def test_a_bare_kind_is_enough() -> None:
    assert TypeAdapter(Schedule).validate_python("wsd") == WarmupStableDecay()
