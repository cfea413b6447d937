"""What the one training loop asks of anything that can be learnt.

An objective names its terms. For each it can say, before the forward pass, how many things the term is a mean of
(`counts`: tokens, pairs, turns), and after it the un-normalised sum over one micro-batch (`__call__`). The loop alone
divides, once, by the count over the whole step. So micro-batches of unequal lengths weigh by their tokens, nothing is
kept alive until the end of the step, and no term can be scaled differently from another by accident.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from torch import Tensor

B = TypeVar("B")


@dataclass(frozen=True)
class Terms:
    """One micro-batch's share of a step.

    `sums`: each term's sum over the micro-batch, a scalar with its graph, not divided by anything.
    `figures`: what to report, each as (sum, count); the loop adds both up and reports their ratio.
    """

    sums: dict[str, Tensor]
    figures: dict[str, tuple[Tensor | float, float]] = field(default_factory=dict)


class Objective(ABC, Generic[B]):
    """Maps (model, batch) to its terms. `weights` holds a term's factor in the loss where it is not 1."""

    weights: Mapping[str, float] = MappingProxyType({})

    @abstractmethod
    def counts(self, batch: B) -> dict[str, float]:
        """What each term of this batch will be a mean of; the same names as `Terms.sums`. Zero is allowed."""

    def amounts(self, batch: B) -> dict[str, float]:
        """What went in, for totals and rates; those that learn from text say `tokens` and `learnt_tokens`, both
        without padding."""
        return {}

    @abstractmethod
    def __call__(self, model: Any, batch: B) -> Terms:
        """The terms of one micro-batch: sums, never means."""
