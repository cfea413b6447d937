"""What the C library's allocator makes of a sequence of tensors: resident memory is more than what is alive.

glibc takes a block of at least the mmap threshold from the kernel and gives it back at once; smaller ones lie in one
heap, best fit, neighbours merged when they are free. A run raises the threshold and lets nothing of the heap go back
(`runtime.keep_freed_memory`; malloc(3), mallopt(3); malloc/malloc.c). So a training step leaves holes, and the heap
stays as large as it ever had to be.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable

from llmlab.planner.census import Block
from llmlab.runtime import MAPPED

HEADER, ALIGNMENT, PAGE = 16, 64, 4096
BESIDE = (144, 224, 272)  # bytes of a storage, a tensor and its node in the graph


class Heap:
    """The allocator's state. `resident` is what the process holds now, `peak` the most it ever did."""

    def __init__(self) -> None:
        self.resident = self.peak = 0
        self._end = 0  # of the heap's used part; free room behind it is `_room`
        self._room = 0
        self._mapped = 0
        self._starts: dict[int, int] = {}  # free chunk -> its size
        self._ends: dict[int, int] = {}  # where a free chunk ends -> where it starts
        self._sizes: list[tuple[int, int]] = []  # (size, start), sorted
        self._where: dict[int, list[tuple[int, int]]] = {}  # block -> (start, size); start -1 where it is mapped

    def take(self, key: int, size: int) -> None:
        """A block comes, and with it the small ones that say what it is."""
        whole = -(-(size + HEADER) // 16) * 16
        if whole >= MAPPED:
            whole = -(-(whole + ALIGNMENT) // PAGE) * PAGE
            self._where[key] = [(-1, whole)]
            self._mapped += whole
        else:
            self._where[key] = [(self._aligned(whole), whole)]
        self._where[key] += [(self._fitted(small), small) for small in BESIDE]
        self._count()

    def _aligned(self, size: int) -> int:
        """posix_memalign: more than enough is taken, what lies before and behind is given back."""
        need = size + ALIGNMENT + 32
        start = self._fitted(need)
        at = -(-(start + HEADER + 32) // ALIGNMENT) * ALIGNMENT - HEADER if (start + HEADER) % ALIGNMENT else start
        if at > start:
            self._free(start, at - start)
        if at + size < start + need:
            self._free(at + size, start + need - at - size)
        return at

    def give(self, key: int) -> None:
        """A block goes."""
        for start, size in self._where.pop(key):
            if start < 0:
                self._mapped -= size
            else:
                self._free(start, size)
        self._count()

    def _count(self) -> None:
        self.resident = self._mapped + self._end + self._room
        self.peak = max(self.peak, self.resident)

    def _fitted(self, size: int) -> int:
        at = bisect_left(self._sizes, (size, 0))
        if at < len(self._sizes):
            room, start = self._sizes[at]
            self._drop(start)
            if room > size:
                self._keep(start + size, room - size)
            return start
        start = self._end
        self._end += size
        self._room = max(self._room - size, 0)
        return start

    def _free(self, start: int, size: int) -> None:
        if (before := self._ends.get(start)) is not None:
            size += self._starts[before]
            start = before
            self._drop(before)
        if (after := self._starts.get(start + size)) is not None:
            self._drop(start + size)
            size += after
        if start + size == self._end:
            self._end, self._room = start, self._room + size
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
    """The most that the allocator holds while these come and go."""
    heap = heap or Heap()
    for sign, block in events:
        if sign > 0:
            heap.take(id(block), block.size)
        else:
            heap.give(id(block))
    return heap.peak
