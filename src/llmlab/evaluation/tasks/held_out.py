"""How well a model meets the objective that it was pretrained by, on held-out text or the user's own.

The figures bear the objective's names: `bits_per_byte` where it gives the likelihood of a whole text, others where it
does not.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field

from llmlab.data.pack import Isolated
from llmlab.data.shards import Documents
from llmlab.data.sources import Files, texts_of
from llmlab.errors import InputError
from llmlab.evaluation import statistics
from llmlab.evaluation.perplexity import begin_id, spelt
from llmlab.evaluation.tasks import base
from llmlab.evaluation.tasks.base import Result, Subject
from llmlab.inference.engine import without_dropout
from llmlab.objectives.kind import Kind, Ratio, Seen, Setting, byte_lengths, look
from llmlab.objectives.pretraining import PretrainObjective, made_for
from llmlab.runtime import derive


class Task(base.Task):
    """A pretraining objective's own figures on a run's held-out text, or on a text file of your own."""

    needs_next_token: ClassVar[bool] = False
    kind: Literal["held_out"] = "held_out"
    text: str = Field("text", description="column of the text, where the file is a table")
    objective: PretrainObjective | None = Field(None, description="null: the one that the architecture is made for")

    def run(self, subject: Subject) -> list[Result]:
        model = subject.bundle.architecture
        objective: Kind = self.objective or made_for(model, subject.tokenizer)
        objective.check(model, Isolated())
        if objective.in_bytes:
            subject.tokenizer.require_lossless("figures by bytes")
        rows = self._rows(subject, objective)
        objective.figures(Seen.sum(rows))  # says where there is nothing to ask
        name = "held_out" if self.path is None else self.files()[0].name
        return [
            _result(name, metric, [objective.ratios(row)[metric] for row in rows], subject.seed)
            for metric in objective.ratios(Seen())
        ]

    def _rows(self, subject: Subject, objective: Kind) -> list[Seen]:
        """What is seen of each packed row of the text."""
        model, corpus = subject.bundle.model, self._corpus(subject)
        setting = Setting(subject.bundle.architecture, subject.tokenizer, subject.bundle.architecture.context)
        predictor, lengths_V = objective.predictor(), byte_lengths(subject.tokenizer)
        with torch.inference_mode(), without_dropout(model):
            rows = [look(predictor, model, batch, lengths_V) for batch in objective.held(corpus, setting, 1)]
        # Of a whole text the bytes are the text's, without what only its spelling has; by rows that is told in shares.
        share = corpus.text_bytes / (Seen.sum(rows).bytes or 1) if objective.whole_text else 1
        return [row._replace(bytes=row.bytes * share) for row in rows]

    def _corpus(self, subject: Subject) -> Documents:
        tokenizer, end = subject.tokenizer, subject.tokenizer.eos_id
        begin = begin_id(tokenizer)
        if end is None or begin is None:
            raise InputError("tokenizer", "has no eos token, which ends every document of a corpus")
        if self.path is not None:
            texts = texts_of(Files(path=self.path, text=self.text), self.limit)
            documents = [[*ids, end] for ids in tokenizer.encode_batch(texts)]
        elif subject.held_out is None:
            problem = "there is no held-out text to read"
            raise InputError(self.kind, problem, "give a text file with path, or --data FILE")
        else:
            documents = [list(ids) for ids in subject.held_out[: self.limit]]
        lengths_V = byte_lengths(tokenizer)
        size = sum(int(lengths_V[ids].sum()) - spelt(tokenizer, ids) for ids in documents)
        return Documents(documents, size, begin, end)


def _result(name: str, metric: str, ratios: list[Ratio], seed: int) -> Result:
    """One figure over the rows. Those in which nothing was asked stay: a row that only ends a text costs bits.

    Of a share the interval is Wilson's too, where that is wider: the bootstrap takes none found for certain.
    """
    sums, counts = [float(ratio.total) for ratio in ratios], [float(ratio.per) for ratio in ratios]
    value = statistics.ratio(sums, counts, derive(seed, "held_out", metric))
    if not metric.endswith("accuracy"):
        return Result(name, metric, value, "lower", sums, counts)
    wilson = statistics.wilson(round(sum(sums)), round(sum(counts)))
    value = value._replace(low=min(value.low, wilson.low), high=max(value.high, wilson.high))
    return Result(name, metric, value, "higher", sums, counts)
