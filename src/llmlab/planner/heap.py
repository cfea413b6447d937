"""What memory a sequence of tensors takes: more than is alive, since free room lies between what stays.

As `region.cpp` has it: large tensors lie in one region, best fit, lowest address first, neighbours joined when they are
free, and nothing goes back while a stage runs. Small ones, and the objects that say what a tensor is, lie in the C
library's heap.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable

from llmlab.planner.census import Block
from llmlab.region import LEAST

ALIGNMENT, HEADER = 64, 16
BESIDE = 640  # bytes of a storage, a tensor and its node in the graph


class Heap:
    """The allocators' state. `peak` is the most that the process ever held."""

    def __init__(self) -> None:
        self._top = self._touched = 0  # of the region
        self._small = self._most_small = 0
        self._starts: dict[int, int] = {}  # free room -> its size
        self._ends: dict[int, int] = {}  # where free room ends -> where it starts
        self._sizes: list[tuple[int, int]] = []  # (size, start), sorted
        self._where: dict[int, tuple[int, int]] = {}  # block -> (start, size); start -1 in the heap

    @property
    def peak(self) -> int:
        return self._touched + self._most_small

    def take(self, key: int, size: int) -> None:
        """A block comes, and with it the small ones that say what it is."""
        if size < LEAST:
            self._where[key] = (-1, size + HEADER)
            self._small += size + HEADER
        else:
            size = -(-size // ALIGNMENT) * ALIGNMENT
            self._where[key] = (self._fitted(size), size)
        self._small += BESIDE
        self._most_small = max(self._most_small, self._small)

    def give(self, key: int) -> None:
        """A block goes."""
        start, size = self._where.pop(key)
        self._small -= BESIDE
        if start < 0:
            self._small -= size
        else:
            self._free(start, size)

    def _fitted(self, size: int) -> int:
        at = bisect_left(self._sizes, (size, 0))
        if at < len(self._sizes):
            room, start = self._sizes[at]
            self._drop(start)
            if room > size:
                self._keep(start + size, room - size)
            return start
        start = self._top
        self._top += size
        self._touched = max(self._touched, self._top)
        return start

    def _free(self, start: int, size: int) -> None:
        if (before := self._ends.get(start)) is not None:
            size += self._starts[before]
            start = before
            self._drop(before)
        if (after := self._starts.get(start + size)) is not None:
            self._drop(start + size)
            size += after
        if start + size == self._top:
            self._top = start
        else:
            self._keep(start, size)

    def _keep(self, start: int, size: int) -> None:
        self._starts[start], self._ends[start + size] = size, start
        insort(self._sizes, (size, start))

    def _drop(self, start: int) -> None:
        size = self._starts.pop(start)
        del self._ends[start + size]
        del self._sizes[bisect_left(self._sizes, (size, start))]


def resident(events: Iterable[tuple[int, Block]], heap: Heap | None = None) -> int:
    """The most that is held while these come and go."""
    heap = heap or Heap()
    for sign, block in events:
        if sign > 0:
            heap.take(id(block), block.size)
        else:
            heap.give(id(block))
    return heap.peak
