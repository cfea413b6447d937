"""The allocator as it is modelled: never less than what is alive, and holes are used again."""

from hypothesis import given
from hypothesis import strategies as st

from llmlab.planner.census import Block
from llmlab.planner.heap import Heap, resident
from llmlab.region import LEAST


@given(st.lists(st.tuples(st.integers(1, 1 << 22), st.integers(0, 6)), max_size=60))
def test_what_is_held_covers_what_is_alive(orders: list[tuple[int, int]]) -> None:
    heap, alive = Heap(), list[tuple[int, int]]()
    for key, (size, drop) in enumerate(orders):
        heap.take(key, size)
        alive.append((key, size))
        assert heap.peak >= sum(size for _, size in alive)
        for _ in range(min(drop, len(alive)) // 2):
            heap.give(alive.pop(0)[0])
    before = heap.peak
    for key, _ in alive:
        heap.give(key)
    assert heap.peak == before
    if (touched := heap._touched) >= LEAST:
        heap.take(-1, touched)  # all that was held is one room again
        assert heap._touched == touched


def test_the_same_again_and_again_takes_no_more() -> None:
    blocks = [Block(size, "activations") for size in (1 << 20, 3 << 20, 5000, 1 << 18)]
    once = [(1, block) for block in blocks] + [(-1, block) for block in blocks]
    assert resident(once * 20) == resident(once)
