"""Tensors in their own region: where they lie is what the planner says, what they hold is theirs alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmlab.planner.heap import Heap
from llmlab.region import LEAST, REGION, give_back, keep_freed_memory
from llmlab.runtime import resident_bytes

compiled = pytest.mark.skipif(REGION.available() is not None, reason=f"no region here: {REGION.available()}")

# Takes and gives tensors as standard input says; answers where each lay.
PLACES = """
import json, sys, torch
from llmlab.region import keep_freed_memory
orders = json.load(sys.stdin)
assert keep_freed_memory() is None
alive, places = {}, []
for key, size in enumerate(orders):
    if size > 0:
        alive[key] = torch.empty(size, dtype=torch.uint8)
        places.append(alive[key].data_ptr())
    else:
        del alive[-size - 1]
print(json.dumps(places))
"""


def orders(seed: int) -> list[int]:
    """Bytes of a tensor that comes; -1 - n: the one of order n goes."""
    draw, alive, found = torch.Generator().manual_seed(seed), list[int](), list[int]()
    for key in range(400):
        if alive and torch.rand((), generator=draw) < 0.47:
            found.append(-1 - alive.pop(int(torch.randint(len(alive), (), generator=draw))))
        else:
            power = torch.rand((), generator=draw) * 8
            found.append(int(LEAST * 2**power) + int(torch.randint(100, (), generator=draw)))
            alive.append(key)
    return found


@compiled
@pytest.mark.parametrize("seed", range(3))
def test_tensors_lie_where_the_planner_says(seed: int) -> None:
    asked = orders(seed)
    command = [sys.executable, "-c", PLACES]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=True)
    places = json.loads(done.stdout)
    heap, said = Heap(), []
    for key, size in enumerate(asked):
        if size > 0:
            heap.take(key, size)
            said.append(heap._where[key][0])
        else:
            heap.give(-size - 1)
    assert [place - places[0] for place in places] == said


@compiled
@given(st.lists(st.tuples(st.integers(1, 1 << 18), st.integers(0, 5)), max_size=40))
def test_no_tensor_writes_into_another(asked: list[tuple[int, int]]) -> None:
    keep_freed_memory()
    alive = list[tuple[torch.Tensor, int]]()
    for number, (size, drop) in enumerate(asked):
        alive.append((torch.full((size,), number % 251, dtype=torch.uint8), number % 251))
        assert alive[-1][0].data_ptr() % 64 == 0
        del alive[:drop]
        assert all(bool((tensor == value).all()) for tensor, value in alive)


@compiled
def test_what_is_freed_stays_until_it_is_given_back() -> None:
    keep_freed_memory()
    give_back()
    before, size = resident_bytes(), 64 << 20
    held = torch.ones(size, dtype=torch.uint8)
    del held
    assert resident_bytes() >= before + 0.9 * size
    give_back()
    assert resident_bytes() <= before + 0.1 * size


@compiled
def test_a_forked_process_has_its_own() -> None:
    keep_freed_memory()
    kept = torch.ones(1 << 16)
    child = os.fork()
    if not child:
        other = torch.full((1 << 16,), 2.0)
        os._exit(int(bool((kept == 1).all()) and bool((other == 2).all())))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert bool((kept == 1).all())


@compiled
def test_tensors_of_several_threads() -> None:
    """And one freed by another thread than the one that made it."""
    from concurrent.futures import ThreadPoolExecutor

    keep_freed_memory()

    def made(number: int) -> torch.Tensor:
        for size in range(20, 40):
            tensor = torch.full((size << 10,), float(number))
            assert bool((tensor == number).all())
        return tensor

    with ThreadPoolExecutor(4) as pool:
        tensors = list(pool.map(made, range(64)))
    assert all(bool((tensor == number).all()) for number, tensor in enumerate(tensors))


def test_why_there_is_none_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMLAB_NATIVE", "0")
    assert "LLMLAB_NATIVE" in str(keep_freed_memory())
