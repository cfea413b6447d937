"""A pure function over a stream, in this process or in several: the same answers in the same order."""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")

AHEAD = 2  # items a worker that wait for it or for the reader: what bounds the memory


def mapped(function: Callable[[A], B], items: Iterable[A], workers: int) -> Iterator[B]:
    """`map(function, items)`, by so many processes if more than one. `function` and items must be picklable.

    Processes are started afresh (a forked one would inherit torch's threads, of which it has none), and end with the
    iteration, also where it is left early.
    """
    if workers <= 1:
        yield from map(function, items)
        return
    started = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=started, initializer=_leave_signals)
    try:
        waiting = deque[Future[B]]()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _leave_signals() -> None:
    """Ctrl-C reaches all processes of a terminal; whoever started the workers ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
