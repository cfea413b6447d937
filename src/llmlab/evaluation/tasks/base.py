"""What every task is: settings, the files it reads, and a run that answers results with intervals."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from llmlab.checkpoints.bundle import Bundle
from llmlab.data.batch import Ids
from llmlab.errors import InputError
from llmlab.evaluation import statistics
from llmlab.evaluation.statistics import Estimate
from llmlab.recipe import Section
from llmlab.tokenization.tokenizer import Tokenizer


@dataclass(frozen=True)
class Subject:
    """Who is measured. `held_out` are documents of the model's own tokenizer that no training saw, or None."""

    bundle: Bundle
    seed: int = 0
    held_out: Sequence[Ids] | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        if self.bundle.tokenizer is None:
            raise InputError(
                self.bundle.origin, "has no tokenizer", "a task needs one; put tokenizer.json beside the weights"
            )
        return self.bundle.tokenizer


@dataclass(frozen=True)
class Result:
    """One figure. `items` has one value an item, in an order that depends on the task alone, so that two models can be
    compared item by item (`weights` where the figure is a ratio of sums). `details` is shown, never compared."""

    name: str
    metric: str
    value: Estimate
    better: Literal["higher", "lower"]
    items: Sequence[float]
    weights: Sequence[float] | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "metric": self.metric,
            "value": self.value.value,
            "interval": self.value.interval,
            "n": self.value.n,
            **self.details,
        }


def proportion(name: str, metric: str, hits: Sequence[bool], **details: Any) -> Result:
    """A share of items, with Wilson's interval."""
    value = statistics.wilson(sum(hits), len(hits))
    return Result(name, metric, value, "higher", [float(hit) for hit in hits], details=details)


class Task(Section, ABC):
    """Settings of one task. `needs_file` tasks cannot run without the user's own data."""

    needs_file: ClassVar[bool] = False
    needs_next_token: ClassVar[bool] = True  # whether only a model that goes on with a text can be measured

    kind: str
    path: str | None = Field(None, description="the user's own file for this task")
    limit: int | None = Field(None, gt=0, description="at most so many items, the first ones; null: all")

    def files(self) -> list[Path]:
        """The user's files that this task reads."""
        return [] if self.path is None else [Path(self.path).expanduser()]

    @abstractmethod
    def run(self, subject: Subject) -> list[Result]:
        """Measure. InputError for a file that cannot be read or a model that cannot be asked."""
