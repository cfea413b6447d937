"""The allocator as it is modelled: never less than what is alive, and holes are used again."""

from hypothesis import given
from hypothesis import strategies as st

from llmlab.planner.census import Block
from llmlab.planner.heap import Heap, resident
from llmlab.runtime import MAPPED


@given(st.lists(st.tuples(st.integers(1, 1 << 22), st.integers(0, 6)), max_size=60))
def test_what_is_resident_covers_what_is_alive(orders: list[tuple[int, int]]) -> None:
    heap, alive = Heap(), list[tuple[int, int]]()
    for key, (size, drop) in enumerate(orders):
        heap.take(key, size)
        alive.append((key, size))
        assert heap.resident >= sum(size for _, size in alive)
        for _ in range(min(drop, len(alive)) // 2):
            heap.give(alive.pop(0)[0])
    for key, _ in alive:
        heap.give(key)
    assert heap.resident == heap.peak  # nothing of the heap goes back


def test_the_same_again_and_again_takes_no_more() -> None:
    blocks = [Block(size, "activations") for size in (1 << 20, 3 << 20, 5000, 1 << 18)]
    once = [(1, block) for block in blocks] + [(-1, block) for block in blocks]
    assert resident(once * 20) <= 1.1 * resident(once * 2)


def test_a_large_block_goes_back_to_the_kernel() -> None:
    heap = Heap()
    heap.take(1, 2 * MAPPED)
    heap.give(1)
    assert heap.resident < 4096
