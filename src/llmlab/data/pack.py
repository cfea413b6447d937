"""Packing: documents laid end to end and cut into rows of one length, so that no computation goes into padding.

A document of n tokens (eos the last) is n pairs (id, target): the first is predicted from the begin token, each other
from the one before it. So every token is a target once an epoch, and no token is predicted across a boundary. The
stream of all pairs is cut into rows; only an epoch's last row is padded. Documents are shuffled anew each epoch before
the cut, rows after it, so neighbours of a long document land in different steps.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from llmlab.data.batch import Batch, listed
from llmlab.data.corruption import FOLLOWING, Corruption, Rows, held_out_noise, row_noise
from llmlab.data.order import ShuffledOrder
from llmlab.data.shards import Corpus
from llmlab.data.state import State
from llmlab.errors import InputError
from llmlab.recipe import KINDS, Section
from llmlab.runtime import generator

Int64 = npt.NDArray[np.int64]


class Isolated(Section):
    """Documents in a row do not see each other, and positions restart (Krell et al. 2021, arXiv 2107.02027)."""

    kind: Literal["isolated"] = "isolated"

    def places(self, column_BT: Int64, since_BT: Int64, document_BT: Int64) -> tuple[Int64, Int64]:
        """(position, document) from the column, how far the document began before it in the row, and its number."""
        return since_BT, document_BT - document_BT[:, :1]


class Mixed(Section):
    """A row is one stream: a document sees those before it, as GPT-3 was trained (Brown et al. 2020)."""

    kind: Literal["mixed"] = "mixed"

    def places(self, column_BT: Int64, since_BT: Int64, document_BT: Int64) -> tuple[Int64, Int64]:
        return np.broadcast_to(column_BT, since_BT.shape), np.zeros_like(document_BT)


Packing = Annotated[Isolated | Mixed, *KINDS]


class Stream:
    """The pairs of all documents in one order; `rows` cuts rows out of it."""

    def __init__(self, corpus: Corpus, documents: Int64, length: int, packing: Isolated | Mixed) -> None:
        self._corpus, self._documents, self._length, self._packing = corpus, documents, length, packing
        self._first = corpus.starts[documents]  # where in the corpus each document of this order begins
        lengths = corpus.starts[documents + 1] - self._first
        self._edges = np.concatenate([[0], np.cumsum(lengths)])

    def rows(self, starts_B: Int64, seen_B: Int64 | None = None) -> Rows:
        """Rows from these places of the stream. The first `seen_B` tokens of a row are not learnt."""
        column_BT = np.arange(self._length)[None]
        at_BT = starts_B[:, None] + column_BT
        real_BT = at_BT < self._edges[-1]
        at_BT = np.minimum(at_BT, self._edges[-1] - 1)
        document_BT = np.searchsorted(self._edges, at_BT, side="right") - 1
        inside_BT = at_BT - self._edges[document_BT]
        token_BT = self._first[document_BT] + inside_BT
        before_BT = np.where(inside_BT > 0, self._corpus.take(np.maximum(token_BT - 1, 0)), self._corpus.begin_id)
        position_BT, place_BT = self._packing.places(column_BT, np.minimum(inside_BT, column_BT), document_BT)
        return Rows(
            np.where(real_BT, before_BT, 0),
            np.where(real_BT, self._corpus.take(token_BT), 0),
            np.where(real_BT, position_BT, 0),
            np.where(real_BT, place_BT, -1),
            real_BT if seen_B is None else real_BT & (column_BT >= seen_B[:, None]),
        )

    def documents(self, start: int) -> Int64:
        """The numbers, in the corpus, of the documents that the row from this place of the stream has tokens of."""
        last = min(start + self._length, int(self._edges[-1])) - 1
        first, end = np.searchsorted(self._edges, [start, last], side="right")
        return self._documents[first - 1 : end]


class PackedBatches:
    """Training batches of `batch_size` rows of `length` tokens, as micro-batches of `micro_batch` rows.

    Endless: a step across an epoch's edge takes the end of one epoch and the start of the next. The state is how many
    rows were taken. Raises `InputError` where the corpus is shorter than one context.

    `corruption` says what is learnt from a row (the next token, unless told). Its noise is keyed by the epoch and the
    row, so neither the size of a step nor its cut into micro-batches changes it; one that has `copies` sees the rows
    and the noise of epoch e again in epoch e + copies, in another order, as if they had been written to disk.
    """

    def __init__(
        self,
        shards: Corpus,
        length: int,
        batch_size: int,
        micro_batch: int,
        seed: int,
        packing: Isolated | Mixed | None = None,
        corruption: Corruption = FOLLOWING,
    ) -> None:
        if shards.tokens < length:
            problem = f"{shards.tokens} tokens of training text are less than one context of {length}"
            raise InputError("corpus", problem, f"add text, or set the context to {shards.tokens} or less")
        self.length, self.batch_size, self.micro_batch, self.seed = length, batch_size, micro_batch, seed
        self.shards, self.packing, self.corruption = shards, packing or Isolated(), corruption
        data = " ".join([shards.fingerprint, str(length), self.packing.kind, *filter(None, [corruption.name])])
        self._order = ShuffledOrder(-(-shards.tokens // length), seed, "rows", data)
        self._stream: tuple[int, Stream] | None = None

    @property
    def rows(self) -> int:
        """Rows in an epoch, the padded one included."""
        return self._order.size

    @property
    def epochs(self) -> float:
        """How often the corpus was trained on."""
        return self._order.epochs

    def next(self, model: Any = None) -> list[Batch]:
        """The micro-batches of one step; the last is smaller where `micro_batch` does not divide `batch_size`."""
        epochs = np.arange(self._order.taken, self._order.taken + self.batch_size) // self._order.size
        rows = np.asarray(self._order.take(self.batch_size))
        groups, noise, documents = list[Rows](), list[npt.NDArray[np.float64]](), list[Int64]()
        for epoch in np.unique(epochs):
            copy, here = self.corruption.copy(int(epoch)), rows[epochs == epoch]
            stream, starts = self._of(copy), here * self.length
            groups.append(stream.rows(starts))
            noise.append(row_noise(self.corruption.planes, self.length, here, self.seed, "corruption", copy))
            documents += map(stream.documents, starts)
        step = self.corruption.learn(Rows.cat(groups), np.concatenate(noise, 1))
        cuts = [slice(start, start + self.micro_batch) for start in range(0, self.batch_size, self.micro_batch)]
        return [step.part(cut, _where(documents[cut])) for cut in cuts]

    def state(self) -> State:
        """How many rows were taken, and of what."""
        return self._order.state()

    def load(self, state: State) -> None:
        """Go on after `state`. Raises `InputError` at the state of another corpus, length, packing or corruption."""
        self._order.load(state)

    def _of(self, copy: int) -> Stream:
        """The documents in the order of this epoch, or of the copy that it reads."""
        if self._stream is None or self._stream[0] != copy:
            shuffled = torch.randperm(self.shards.documents, generator=generator(self.seed, "documents", copy))
            self._stream = copy, Stream(self.shards, shuffled.numpy(), self.length, self.packing)
        return self._stream[1]


class EvalBatches:
    """A held-out corpus in its own order, every token a target once; iterate as often as wanted.

    With `overlap`, a row begins with that many tokens of the row before it, seen but not predicted again, so a token
    has at least so much context (where its document has). Bits per byte = summed nats / ln 2 / `text_bytes`; the sum
    holds the eos of every document, which costs bits and is no text, so the figure is not flattered.

    The noise of a `corruption` is keyed by the row alone: every model of every seed is asked the same.
    """

    def __init__(
        self,
        shards: Corpus,
        length: int,
        batch_size: int,
        packing: Isolated | Mixed | None = None,
        overlap: int = 0,
        corruption: Corruption = FOLLOWING,
    ) -> None:
        if not 0 <= overlap < length:
            raise InputError("overlap", f"{overlap} is not below the length of a row, {length}")
        self.tokens, self.text_bytes = shards.tokens, shards.text_bytes
        self.length = min(length, shards.tokens)
        stride = self.length - min(overlap, self.length - 1)
        count = 1 + max(0, -(-(shards.tokens - self.length) // stride))
        self._starts = np.arange(count) * stride
        self._seen = np.where(self._starts > 0, self.length - stride, 0)
        self._stream = Stream(shards, np.arange(shards.documents), self.length, packing or Isolated())
        self._batch_size, self._corruption = batch_size, corruption

    def __len__(self) -> int:
        return -(-len(self._starts) // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, len(self._starts), self._batch_size):
            cut = slice(first, first + self._batch_size)
            rows = self._stream.rows(self._starts[cut], self._seen[cut])
            noise = held_out_noise(self._corruption.planes, self.length, np.arange(len(self._starts))[cut])
            yield self._corruption.learn(rows, noise)


def _where(documents: Sequence[Int64]) -> str:
    """Documents are counted from 1, as the lines of the text stage's train.jsonl are."""
    return f"training documents {listed(np.unique(np.concatenate(documents)) + 1)}"
