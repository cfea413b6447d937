"""Bits per byte of held-out text, or of the user's own: the one figure that compares models of any tokenizer."""

from typing import Literal

import numpy as np
from pydantic import Field

from llmlab.data.sources import Files, texts_of
from llmlab.errors import InputError
from llmlab.evaluation.perplexity import Scores, score_documents, score_texts
from llmlab.evaluation.tasks import base
from llmlab.evaluation.tasks.base import Result, Subject
from llmlab.runtime import derive


class Task(base.Task):
    """Bits per byte of a run's held-out text, or of a text file of your own."""

    kind: Literal["bits_per_byte"] = "bits_per_byte"
    text: str = Field("text", description="column of the text, where the file is a table")
    stride: int | None = Field(None, gt=0, description="tokens from one window to the next; null: the whole context")

    def run(self, subject: Subject) -> list[Result]:
        scores = self._scores(subject)
        bits = scores.nats / np.log(2)
        value = scores.estimate(derive(subject.seed, self.kind))
        name = "held_out" if self.path is None else self.files()[0].name
        sizes = scores.bytes.astype(float).tolist()
        details = {"bytes": int(scores.bytes.sum()), "perplexity": scores.perplexity}
        return [Result(name, "bits_per_byte", value, "lower", bits.tolist(), sizes, details)]

    def _scores(self, subject: Subject) -> Scores:
        model, tokenizer = subject.bundle.model, subject.tokenizer
        if self.path is not None:
            return score_texts(
                model, tokenizer, texts_of(Files(path=self.path, text=self.text), self.limit), self.stride
            )
        if subject.held_out is None:
            problem = "there is no held-out text to read"
            raise InputError(self.kind, problem, "give a text file with path, or --data FILE")
        return score_documents(model, tokenizer, subject.held_out[: self.limit], self.stride)
