"""Rewards as plain functions of answers: (prompts, completions) -> one number an answer.

A policy may be trained against any of them in place of a reward model, and any of them may watch a training that
learns from another: the gold reward does that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from llmlab.evaluation import repetition as repeats
from llmlab.inference.engine import Completion


class Prompt(Protocol):
    """A question as ids, rendered up to where the answer begins."""

    @property
    def ids(self) -> Sequence[int]: ...


P = TypeVar("P", bound=Prompt)
Reward = Callable[[Sequence[P], Sequence[Completion]], Sequence[float]]
Judge = Callable[[Sequence[P], Sequence[Completion]], Mapping[str, Sequence[float]]]  # several, by name


def length(prompts: Sequence[Prompt], done: Sequence[Completion]) -> list[float]:
    """Tokens of the answer, the stop token included."""
    return [float(len(answer.ids)) for answer in done]


def repetition(prompts: Sequence[Prompt], done: Sequence[Completion]) -> list[float]:
    """rep-4: share of 4-grams that were there before (Welleck et al. 2020)."""
    return [repeats.repetition(answer.ids) for answer in done]


def stopped(prompts: Sequence[Prompt], done: Sequence[Completion]) -> list[float]:
    """1 where the answer came to its end by itself."""
    return [float(answer.finish_reason == "stop") for answer in done]
