"""Multiple choice by likelihood: the choice that the model finds likeliest is its answer, nothing is generated.

Two readings, as in EleutherAI's harness: `accuracy` takes the whole choice's log-probability, so short choices have it
easier; `accuracy_per_byte` divides by the choice's length in bytes (Gao 2021, "Multiple choice normalization").
"""

from typing import ClassVar, Literal

import numpy as np

from llmlab.errors import InputError
from llmlab.evaluation.choices import likelihoods, read_items
from llmlab.evaluation.tasks import base
from llmlab.evaluation.tasks.base import Result, Subject, proportion

ENOUGH = 50  # items of a subject for a row of its own; an interval over fewer says next to nothing


class Task(base.Task):
    """Questions with fixed answers: PIQA, CMMLU, BLiMP, BIG-bench, or question/choices/answer rows."""

    needs_file: ClassVar[bool] = True

    kind: Literal["multiple_choice"] = "multiple_choice"

    def run(self, subject: Subject) -> list[Result]:
        if self.path is None:
            raise InputError("multiple_choice", "needs a file of questions", "give its path, or --data FILE")
        items = read_items(self.files()[0], self.limit)
        found = likelihoods(subject.bundle.model, subject.tokenizer, items)
        right = [item.answer for item in items]
        raw = [int(np.argmax(one.logprobs)) == answer for one, answer in zip(found, right, strict=True)]
        normed = [int(np.argmax(one.logprobs / one.bytes)) == answer for one, answer in zip(found, right, strict=True)]
        name = self.files()[0].name.removesuffix(".gz").rpartition(".")[0]
        chance = float(np.mean([1 / len(item.choices) for item in items]))
        results = [proportion(name, "accuracy", raw, chance=chance)]
        results.append(proportion(name, "accuracy_per_byte", normed, chance=chance))
        for one in sorted({item.subject for item in items} - {""}):
            hits = [hit for hit, item in zip(raw, items, strict=True) if item.subject == one]
            if len(hits) >= ENOUGH:
                results.append(proportion(f"{name}/{one}", "accuracy", hits))
        return results
