"""Ranks that are started anew find each other, and not those who died."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from llmlab.world import met


@pytest.mark.parametrize("late", [0, 1, 2])
def test_who_is_started_again_does_not_meet_the_dead(late: int) -> None:
    """Three lives on one store, as torchrun keeps it, each with one rank that comes late. The last ranks of the second
    life were killed as soon as they had asked."""
    store, size = dist.HashStore(), 3

    def come(rank: int) -> str:
        time.sleep(0.2 if rank == late else 0.0)
        return met(store, rank, size)

    names = []
    for life in range(2):
        with ThreadPoolExecutor(size) as pool:
            given = set(pool.map(come, range(size), timeout=20))
        assert len(given) == 1
        names.append(given.pop())
        store.set("here/1", f"killed {life}")
        store.set("here/2", f"killed {life}")
    assert names[0] != names[1]
