"""What a search finds, and what every search is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from llmlab.errors import InputError
from llmlab.inference.constrain import Guide
from llmlab.inference.front import Front
from llmlab.inference.rules import Watch
from llmlab.inference.sampling import Sampling
from llmlab.recipe import Section


@dataclass(frozen=True)
class Hypothesis:
    """One text that was found. `ids` include the stop token that ended it; `score` is what it was ranked by, larger is
    better and each search says what it is; `finish_reason` is `length` where the limit ended it."""

    ids: list[int]
    score: float
    finish_reason: Literal["stop", "length"]


class SearchPart(Section, ABC):
    """The settings of a search. What it cannot go with is refused by name."""

    states: ClassVar[bool] = False  # whether it looks at hidden states, so that the front must tell them

    @abstractmethod
    def check(self, sampling: Sampling) -> None:
        """Errors: InputError for settings of `sampling` that this search cannot mind."""

    @abstractmethod
    def find(
        self,
        front: Front,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        stop_ids: Collection[int],
        seeds: Sequence[int],
        watch: Watch | None = None,
        guide: Guide | None = None,
    ) -> list[list[Hypothesis]]:
        """The hypotheses of each prompt, best first, one at least. `seeds` has one a prompt, for what is drawn;
        `sampling.seed` and `sampling.stop` are not read: `watch` looks for texts that end one, `guide`
        follows `sampling.constraint`."""


def refuse_drawing(search: str, sampling: Sampling) -> None:
    """For searches that draw nothing: temperature 1, the model's own distribution, and 0 are the same to them."""
    if sampling.temperature not in (0, 1):
        problem = f"{sampling.temperature:g} cannot go with {search} search, which draws nothing"
        raise InputError("sampling.temperature", problem, "leave it out, or use search best_of")
