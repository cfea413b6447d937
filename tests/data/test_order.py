"""The order of examples: a permutation an epoch, and the same after any stop (traps 36, 37)."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.data.order import ShuffledOrder
from llmlab.data.state import State
from llmlab.errors import InputError


@settings(deadline=None, max_examples=60)
@given(size=st.integers(1, 12), batch=st.integers(1, 7), seed=st.integers(0, 99))
def test_stopped_at_every_step_equals_unbroken(size: int, batch: int, seed: int) -> None:
    steps = 3 * size // batch + 2  # over three epochs, edges included
    whole = ShuffledOrder(size, seed, "test", "data")
    unbroken = [whole.take(batch) for _ in range(steps)]
    saved, resumed = ShuffledOrder(size, seed, "test", "data").state(), []
    for _ in range(steps):
        again = ShuffledOrder(size, seed, "test", "data")
        again.load(State(values=json.loads(json.dumps(dict(saved.values)))))
        resumed.append(again.take(batch))
        saved = again.state()
    assert resumed == unbroken
    stream = [index for step in unbroken for index in step]
    for epoch in range(len(stream) // size):  # nothing dropped, nothing twice
        assert sorted(stream[epoch * size : (epoch + 1) * size]) == list(range(size))
    assert whole.epochs == len(stream) / size


def test_epochs_and_seeds_differ() -> None:
    order = ShuffledOrder(50, 0, "test")
    first, second = order.take(50), order.take(50)
    assert first != second
    assert first != ShuffledOrder(50, 1, "test").take(50)
    assert first != ShuffledOrder(50, 0, "other").take(50)
    assert first == ShuffledOrder(50, 0, "test").take(50)


@pytest.mark.parametrize(("size", "data"), [(4, "same"), (5, "changed")])
def test_other_examples_are_refused(size: int, data: str) -> None:
    order = ShuffledOrder(5, 0, "chats", "same")
    with pytest.raises(InputError, match="resume with the same data"):
        ShuffledOrder(size, 0, "chats", data).load(order.state())


def test_no_examples() -> None:
    with pytest.raises(InputError, match="no examples"):
        ShuffledOrder(0, 0, "chats")


def test_states_join_and_part() -> None:
    a, b = State({"x": torch.ones(2)}, {"n": 3}), State(values={"m": [1, None]})
    joined = State.join(first=a, second=b)
    assert set(joined.tensors) == {"first.x"}
    assert torch.equal(joined.part("first").tensors["x"], torch.ones(2))
    assert joined.part("first").integer("n") == 3
    assert joined.part("second").values == {"m": [1, None]}
    with pytest.raises(InputError, match="holds no part 'third'"):
        joined.part("third")
    with pytest.raises(InputError, match=r"'m' is .* not a whole number"):
        joined.part("second").integer("m")
