"""Preference pairs by likelihood: how often the better of two answers is the likelier one.

This looks at the policy itself, not at a reward model. Per token it is what SimPO optimises (Meng et al. 2024, arXiv
2405.14734); as a whole, what DPO compares with its reference (Rafailov et al. 2023, arXiv 2305.18290).
"""

from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from llmlab.data.pair_rows import Pair
from llmlab.data.pairs import FilePairs
from llmlab.data.sources import Reading
from llmlab.data.tasks import rivals
from llmlab.evaluation.asking import Asker, user
from llmlab.evaluation.perplexity import Span, span_nats
from llmlab.evaluation.tasks import base
from llmlab.evaluation.tasks.base import Result, Subject, proportion
from llmlab.evaluation.tasks.exercises import held_out_exercises


class Task(base.Task):
    """Preference accuracy on held-out generated pairs, or on your own file of chosen and rejected answers."""

    kind: Literal["pairs"] = "pairs"
    limit: int | None = Field(200, gt=0, description="at most so many pairs; null: all of a file")
    columns: dict[str, str] = Field({}, description="where your columns have other names: {chosen: my_better}")

    def run(self, subject: Subject) -> list[Result]:
        pairs = _generated(subject.seed, self.limit or 200) if self.path is None else self._read(self.path)
        asker = Asker(subject.bundle)
        spans = []
        for pair in pairs:
            before = asker.prompt(pair.messages)
            for answer in (pair.chosen, pair.rejected):
                spans.append(Span(before + asker.tokenizer.encode(answer, "text"), len(before)))
        nats = span_nats(subject.bundle.model, spans).reshape(-1, 2)
        tokens = np.array([len(span.ids) - span.first for span in spans]).reshape(-1, 2)
        whole, each = nats[:, 0] < nats[:, 1], nats[:, 0] / tokens[:, 0] < nats[:, 1] / tokens[:, 1]
        name = "pairs" if self.path is None else Path(self.path).name
        return [
            proportion(name, "accuracy", whole.tolist(), chance=0.5),
            proportion(name, "accuracy_per_token", each.tolist(), chance=0.5),
        ]

    def _read(self, path: str) -> list[Pair]:
        return list(islice(FilePairs(path=path, columns=self.columns).pairs(0, Reading()), self.limit))


def _generated(seed: int, count: int) -> list[Pair]:
    """Rival answers to held-out exercises."""
    made = [(exercise, rivals(exercise, seed)) for exercise in held_out_exercises(seed, count)]
    return [Pair(user(exercise.prompt), pair.chosen, pair.rejected, tag=pair.tag) for exercise, pair in made]
