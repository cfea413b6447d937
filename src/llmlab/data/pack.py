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

from llmlab.data.batch import IGNORE, Batch, listed
from llmlab.data.order import ShuffledOrder
from llmlab.data.shards import TokenShards
from llmlab.data.state import State
from llmlab.errors import InputError
from llmlab.model.places import Places
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
    """The pairs of all documents in one order; `batch` cuts rows out of it."""

    def __init__(self, shards: TokenShards, documents: Int64, length: int, packing: Isolated | Mixed) -> None:
        self._shards, self._documents, self._length, self._packing = shards, documents, length, packing
        self._first = shards.starts[documents]  # where in the corpus each document of this order begins
        lengths = shards.starts[documents + 1] - self._first
        self._edges = np.concatenate([[0], np.cumsum(lengths)])

    def batch(self, starts_B: Int64, seen_B: Int64 | None = None) -> Batch:
        """Rows from these places of the stream. The first `seen_B` targets of a row are not learnt."""
        column_BT = np.arange(self._length)[None]
        at_BT = starts_B[:, None] + column_BT
        real_BT = at_BT < self._edges[-1]
        at_BT = np.minimum(at_BT, self._edges[-1] - 1)
        document_BT = np.searchsorted(self._edges, at_BT, side="right") - 1
        inside_BT = at_BT - self._edges[document_BT]
        token_BT = self._first[document_BT] + inside_BT
        targets_BT = self._shards.take(token_BT)
        ids_BT = np.where(inside_BT > 0, self._shards.take(np.maximum(token_BT - 1, 0)), self._shards.begin_id)
        position_BT, place_BT = self._packing.places(column_BT, np.minimum(inside_BT, column_BT), document_BT)
        learnt_BT = real_BT if seen_B is None else real_BT & (column_BT >= seen_B[:, None])
        position = torch.from_numpy(np.where(real_BT, position_BT, 0))
        document = torch.from_numpy(np.where(real_BT, place_BT, -1))
        return Batch(
            torch.from_numpy(np.where(real_BT, ids_BT, 0)),
            torch.from_numpy(np.where(learnt_BT, targets_BT, IGNORE)),
            Places(position, position, document),
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
    """

    def __init__(
        self,
        shards: TokenShards,
        length: int,
        batch_size: int,
        micro_batch: int,
        seed: int,
        packing: Isolated | Mixed | None = None,
    ) -> None:
        if shards.tokens < length:
            problem = f"{shards.tokens} tokens of training text are less than one context of {length}"
            raise InputError("corpus", problem, f"add text, or set the context to {shards.tokens} or less")
        self.length, self.batch_size, self.micro_batch, self.seed = length, batch_size, micro_batch, seed
        self.shards, self.packing = shards, packing or Isolated()
        data = f"{shards.fingerprint} {length} {self.packing.kind}"
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
        groups, documents = list[Batch](), list[Int64]()
        for epoch in np.unique(epochs):
            stream, starts = self._of(int(epoch)), rows[epochs == epoch] * self.length
            groups.append(stream.batch(starts))
            documents += map(stream.documents, starts)
        step = groups[0] if len(groups) == 1 else _cat(groups)
        cuts = [slice(start, start + self.micro_batch) for start in range(0, self.batch_size, self.micro_batch)]
        return [Batch(step.ids_BT[cut], step.targets_BT[cut], step.at[cut], _where(documents[cut])) for cut in cuts]

    def state(self) -> State:
        """How many rows were taken, and of what."""
        return self._order.state()

    def load(self, state: State) -> None:
        """Go on after `state`. Raises `InputError` at the state of another corpus, length or packing."""
        self._order.load(state)

    def _of(self, epoch: int) -> Stream:
        """The documents in the order of this epoch."""
        if self._stream is None or self._stream[0] != epoch:
            shuffled = torch.randperm(self.shards.documents, generator=generator(self.seed, "documents", epoch))
            self._stream = epoch, Stream(self.shards, shuffled.numpy(), self.length, self.packing)
        return self._stream[1]


class EvalBatches:
    """A held-out corpus in its own order, every token a target once; iterate as often as wanted.

    With `overlap`, a row begins with that many tokens of the row before it, seen but not predicted again, so a token
    has at least so much context (where its document has). Bits per byte = summed nats / ln 2 / `text_bytes`; the sum
    holds the eos of every document, which costs bits and is no text, so the figure is not flattered.
    """

    def __init__(
        self,
        shards: TokenShards,
        length: int,
        batch_size: int,
        packing: Isolated | Mixed | None = None,
        overlap: int = 0,
    ) -> None:
        if not 0 <= overlap < length:
            raise InputError("overlap", f"{overlap} is not below the length of a row, {length}")
        self.tokens, self.text_bytes = shards.tokens, shards.text_bytes
        length = min(length, shards.tokens)
        stride = length - min(overlap, length - 1)
        count = 1 + max(0, -(-(shards.tokens - length) // stride))
        self._starts = np.arange(count) * stride
        self._seen = np.where(self._starts > 0, length - stride, 0)
        self._stream = Stream(shards, np.arange(shards.documents), length, packing or Isolated())
        self._batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self._starts) // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, len(self._starts), self._batch_size):
            cut = slice(first, first + self._batch_size)
            yield self._stream.batch(self._starts[cut], self._seen[cut])


def _where(documents: Sequence[Int64]) -> str:
    """Documents are counted from 1, as the lines of the text stage's train.jsonl are."""
    return f"training documents {listed(np.unique(np.concatenate(documents)) + 1)}"


def _cat(batches: list[Batch]) -> Batch:
    """Rows of several batches of one length below each other."""
    fields = zip(*((b.ids_BT, b.targets_BT, b.at.position, b.at.order, b.at.document) for b in batches), strict=True)
    ids_BT, targets_BT, position, order, document = (torch.cat(tensors) for tensors in fields)
    return Batch(ids_BT, targets_BT, Places(position, order, document))
