"""The loss of a text's tokens by where they stand, past the trained length too, and of the same tokens read with less
before them: what length itself costs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from llmlab.errors import InputError
from llmlab.evaluation import statistics
from llmlab.evaluation.perplexity import token_nats
from llmlab.evaluation.reading import nats_by_token, stretch, whole_text
from llmlab.evaluation.tasks import base
from llmlab.evaluation.tasks.base import Result, Subject
from llmlab.model.rescaling import reread
from llmlab.runtime import derive

LONGEST = 4096  # tokens that are read where no length is given
BAR = 40  # characters of the longest bar


class Task(base.Task):
    """Nats a token by place, of stretches of the bundled book or of a file of your own."""

    kind: Literal["loss_by_position"] = "loss_by_position"
    limit: int | None = Field(4, gt=0, description="how many stretches of text")
    length: int | None = Field(
        None, gt=1, description=f"tokens of each, past the context too; null: the context, at most {LONGEST}"
    )
    bins: int = Field(8, gt=0, description="how many equal parts the curve has")
    near: int | None = Field(
        None, gt=1, description="the same tokens besides with at most so many before them, at least half; null: not"
    )
    text: str = Field("text", description="column of the text, where the file is a table")

    def run(self, subject: Subject) -> list[Result]:
        length = self.length or min(subject.bundle.architecture.context, LONGEST)
        if self.bins > length:
            raise InputError("task loss_by_position: bins", f"{self.bins} parts of {length} tokens", "fewer")
        edges = np.linspace(0, length, self.bins + 1).round().astype(int)
        rows = self._rows(subject, length)
        model = subject.bundle.model
        far = np.array([_by_bin(nats_by_token(model, row), edges) for row in rows])
        curve: list[dict[str, Any]] = [
            {"from": int(start), "to": int(end), **_told("nats", far[:, place])}
            for place, (start, end) in enumerate(pairwise(edges))
        ]
        results = [
            Result("loss_by_position", "nats_in_last_part", statistics.mean(far[:, -1]), "lower", far[:, -1].tolist())
        ]
        if self.near is not None:
            short = reread(model, model.architecture.model_copy(update={"context": self.near}))
            close = np.array([_by_bin(token_nats(short, row, max(1, self.near // 2)), edges) for row in rows])
            cost = far - close
            curve = [part | _told("cost_of_length", cost[:, place]) for place, part in enumerate(curve)]
            last = cost[:, -1]
            results.append(
                Result("loss_by_position", "cost_in_last_part", statistics.mean(last), "lower", last.tolist())
            )
        results[0].details.update({"curve": curve, "table": table(curve)})
        return results

    def _rows(self, subject: Subject, length: int) -> list[list[int]]:
        """Stretches of `length` + 1 tokens, the first of which only begins them."""
        book = whole_text(self.path, self.text)
        seeds = [derive(subject.seed, self.kind, row) for row in range(self.limit or 4)]
        place = f"task {self.kind}: length"
        return [list(stretch(book, subject.tokenizer, length + 1, seed, place)[: length + 1]) for seed in seeds]


def _by_bin(nats_T: Tensor, edges: np.ndarray) -> list[float]:
    return [float(nats_T[start:end].mean()) for start, end in pairwise(edges)]


def _told(name: str, values: Sequence[float] | np.ndarray) -> dict[str, Any]:
    estimate = statistics.mean(values)
    return {name: estimate.value, f"{name}_interval": estimate.interval}


def table(curve: Sequence[dict[str, Any]]) -> list[str]:
    """A line a part: its places, its loss as a number and as a bar, and what length costs where that was asked."""
    most = max(part["nats"] for part in curve)
    lines = []
    for part in curve:
        bar = "#" * round(BAR * part["nats"] / most) if most > 0 else ""
        cost = f"  {part['cost_of_length']:+.3f} for its length" if "cost_of_length" in part else ""
        lines.append(f"{part['from']:>7} - {part['to']:<7} {part['nats']:7.3f} {bar:<{BAR}}{cost}")
    return lines
