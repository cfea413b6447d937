"""Loops in a text while it grows: its end says the same few tokens over and over.

A text loops with period p where its last tokens each equal the one p before. One counter a period tells how long that
has been so, and all of them are brought on at once with each token, so watching costs microseconds a token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from pydantic import Field

from llmlab.recipe import Section


class Loop(NamedTuple):
    """Tokens from `start` on repeat every `period`; the first time they were said begins there."""

    start: int
    period: int


class Looping(Section):
    """What counts as a loop."""

    repeats: int = Field(3, ge=2, description="how often the same tokens must stand in a row")
    tokens: int = Field(24, ge=2, description="how many tokens all of it must have, so that `ha ha ha` is none")
    longest: int = Field(256, ge=1, description="the longest period that is looked for, in tokens")


class LoopWatch:
    """Push ids one by one; the answer is the loop that the text is in, None while it is in none."""

    def __init__(self, looping: Looping | None = None) -> None:
        self.looping = looping or Looping()
        longest = self.looping.longest
        self._periods = np.arange(1, longest + 1)
        # A run of r equal tokens at period p shows 1 + r / p copies, r + p tokens.
        self._needed = np.maximum((self.looping.repeats - 1) * self._periods, self.looping.tokens - self._periods)
        self._runs = np.zeros(longest, np.int64)
        self._newest = np.full(longest, -1, np.int64)  # the last tokens, newest first
        self._count = 0

    @property
    def under_way(self) -> int:
        """How many of the last tokens may prove to be copies: no loop that is found later begins to copy before."""
        return int(self._runs.max())

    def push(self, id: int) -> Loop | None:
        self._runs += 1
        self._runs *= self._newest == id
        self._newest[1:] = self._newest[:-1]
        self._newest[0] = id
        self._count += 1
        (found,) = np.nonzero(self._runs >= self._needed)
        if not len(found):
            return None
        period = int(self._periods[found[0]])
        return Loop(self._count - int(self._runs[found[0]]) - period, period)


def alarms(ids: Sequence[int], looping: Looping | None = None) -> list[int]:
    """Where a whole text falls into a loop, by the index of the token with which a watch would find it; once for each
    time. The text is looked at period by period, so that a million tokens take seconds."""
    looping = looping or Looping()
    all_ = np.asarray(ids, np.int64)
    inside = np.zeros(len(all_) + 1, bool)
    for period in range(1, min(looping.longest, len(all_) - 1) + 1):
        equal = all_[period:] == all_[:-period]
        places = np.arange(len(equal))
        runs = places - np.maximum.accumulate(np.where(equal, -1, places))
        needed = max((looping.repeats - 1) * period, looping.tokens - period, 1)
        inside[1 + period :] |= runs >= needed
    found: list[int] = np.flatnonzero(inside[1:] & ~inside[:-1]).tolist()
    return found


def loop_in(ids: Iterable[int], looping: Looping | None = None) -> Loop | None:
    """The first loop of a text, None where it has none."""
    watch = LoopWatch(looping)
    return next((loop for id in ids if (loop := watch.push(id)) is not None), None)
