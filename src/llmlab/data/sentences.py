"""Pairs of texts for next-sentence prediction: [CLS] a [SEP] b [SEP], b what followed a, or part of another document.

As in BERT (Devlin et al. 2018, appendix A.2), a "sentence" is a stretch of text and not a sentence: a piece of a
document is cut in two where one of its sentences ends. Left out: the tenth of all pairs that BERT makes shorter. Both
kinds of pair are equally long on average, so length alone says nothing of the answer.

Shapes: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from llmlab.data.batch import Batch, TextPairBatch, listed
from llmlab.data.corruption import Bool, Corruption, Int64, Noise, Rows, held_out_noise, row_noise
from llmlab.data.order import ShuffledOrder
from llmlab.data.shards import Corpus
from llmlab.data.state import State
from llmlab.errors import InputError
from llmlab.model.places import Places
from llmlab.tokenization.tokenizer import Tokenizer

FRAME = 3  # special tokens a pair
PLANES = 3  # of noise, for the pair alone
ENDS = tuple(mark.encode() for mark in (".", "!", "?", "\n", "\u3002", "\uff01", "\uff1f"))


def sentence_ends(tokenizer: Tokenizer) -> Bool:
    """[V]: whether a sentence ends with this token."""
    return np.array([tokenizer.token_bytes(id).rstrip(b" ").endswith(ENDS) for id in range(tokenizer.vocab_size)])


class TextPairs:
    """All pairs of a corpus: every document cut into pieces of a row, each the first text of one pair an epoch.

    `frame` are the ids of [CLS] and [SEP]. InputError where the rows are too short, or fewer than two documents have
    two tokens.
    """

    def __init__(self, corpus: Corpus, length: int, ends_V: Bool, frame: tuple[int, int], hide: Corruption) -> None:
        self.corpus, self.length, self.hide = corpus, length, hide
        self._ends_V, self._frame = ends_V, frame
        self._room = length - FRAME
        if self._room < 2:
            raise InputError("pretrain.length", f"{length} tokens are too few for a pair", "at least 5")
        size_D = np.diff(corpus.starts) - 1  # without eos, whose place the separator takes
        count_D = -(-size_D // self._room)
        document_E = np.repeat(np.arange(corpus.documents), count_D)
        piece_E = np.arange(len(document_E)) - np.repeat(np.cumsum(count_D) - count_D, count_D)
        first_E = corpus.starts[document_E] + piece_E * self._room
        size_E = np.minimum(self._room, corpus.starts[document_E + 1] - 1 - first_E)
        enough = size_E >= 2
        self._document_E, self._first_E, self._size_E = document_E[enough], first_E[enough], size_E[enough]
        if len(np.unique(self._document_E)) < 2:
            raise InputError("corpus", "has fewer than two documents of two tokens", "next_sentence pairs documents")
        self.planes = PLANES + hide.planes

    def __len__(self) -> int:
        return len(self._first_E)

    def documents(self, examples_B: Int64) -> Int64:
        """The documents that the first texts of these pairs are from."""
        return np.asarray(self._document_E[examples_B], np.int64)

    def batch(self, examples_B: Int64, noise_PBT: Noise) -> TextPairBatch:
        """These pairs, one a row; half of them, by the noise, of one document."""
        choice_B, follows_B = self._others(examples_B, noise_PBT[1, :, 0]), noise_PBT[1, :, 1] < 0.5
        cut_B, other_B = self._cuts(examples_B, noise_PBT[0]), self._cuts(choice_B, noise_PBT[2])
        # Both kinds are made as long as the shorter of the two that this row could be.
        left_B = np.minimum(self._size_E[examples_B] - cut_B, self._size_E[choice_B] - other_B)
        second_B = np.where(follows_B, self._first_E[examples_B] + cut_B, self._first_E[choice_B] + other_B)
        column_BT = np.arange(int((cut_B + left_B).max()) + FRAME)[None]
        cut_B1, left_B1 = cut_B[:, None], left_B[:, None]
        end_B1 = cut_B1 + left_B1 + 2
        in_a_BT = (column_BT >= 1) & (column_BT <= cut_B1)
        in_b_BT = (column_BT >= cut_B1 + 2) & (column_BT < end_B1)
        from_BT = np.where(
            in_a_BT, self._first_E[examples_B][:, None] + column_BT - 1, second_B[:, None] + column_BT - cut_B1 - 2
        )
        begin, separator = self._frame
        tokens_BT = np.where(column_BT == 0, begin, np.full_like(from_BT, separator))
        words_BT = in_a_BT | in_b_BT
        tokens_BT[words_BT] = self.corpus.take(from_BT[words_BT])
        real_BT = column_BT <= end_B1
        position_BT = np.where(real_BT, column_BT, 0)
        tokens_BT, document_BT = np.where(real_BT, tokens_BT, 0), np.where(real_BT, 0, -1)
        rows = Rows(tokens_BT, tokens_BT, position_BT, document_BT, words_BT)
        hidden = self.hide.learn(rows, noise_PBT[PLANES:, :, : column_BT.shape[1]])
        segment = torch.from_numpy((real_BT & (column_BT >= cut_B1 + 2)).astype(np.int64))
        at = Places(hidden.at.position, hidden.at.order, hidden.at.document, segment)
        return TextPairBatch(hidden.ids_BT, hidden.targets_BT, at, follows_B=torch.from_numpy(follows_B))

    def _others(self, examples_B: Int64, noise_B: Noise) -> Int64:
        """For each a piece of another document, all as likely."""
        document_B = self._document_E[examples_B]
        first_B, end_B = (np.searchsorted(self._document_E, document_B, side=side) for side in ("left", "right"))
        drawn_B = np.floor(noise_B * (len(self) - (end_B - first_B))).astype(np.int64)
        return np.asarray(np.where(drawn_B < first_B, drawn_B, drawn_B + end_B - first_B), np.int64)

    def _cuts(self, examples_B: Int64, noise_BT: Noise) -> Int64:
        """How many tokens of each piece stand before its cut: to the end of a sentence, where one ends inside."""
        after_BT = np.arange(1, self._room)[None]
        inside_BT = after_BT < self._size_E[examples_B][:, None]
        at_BT = self._first_E[examples_B][:, None] + np.where(inside_BT, after_BT - 1, 0)
        ends_BT = inside_BT & self._ends_V[self.corpus.take(at_BT)]
        may_BT = np.where(ends_BT.any(1, keepdims=True), ends_BT, inside_BT)
        return np.asarray(np.where(may_BT, noise_BT[:, 1 : self._room], -1.0).argmax(1) + 1, np.int64)


class TextPairBatches:
    """Training batches of pairs, as micro-batches; every piece of the corpus begins one pair an epoch. Endless, resumed
    by the count of pairs taken, as `PackedBatches`."""

    def __init__(self, pairs: TextPairs, batch_size: int, micro_batch: int, seed: int) -> None:
        self.pairs, self.batch_size, self.micro_batch, self.seed = pairs, batch_size, micro_batch, seed
        data = f"{pairs.corpus.fingerprint} {pairs.length} pairs {pairs.hide.name}"
        self._order = ShuffledOrder(len(pairs), seed, "pairs", data)

    @property
    def epochs(self) -> float:
        return self._order.epochs

    def next(self, model: Any = None) -> list[Batch]:
        epochs = np.arange(self._order.taken, self._order.taken + self.batch_size) // self._order.size
        examples = np.asarray(self._order.take(self.batch_size))
        noise = list[npt.NDArray[np.float64]]()
        for epoch in np.unique(epochs):
            purpose = "corruption", self.pairs.hide.copy(int(epoch))
            noise.append(
                row_noise(self.pairs.planes, self.pairs.length, examples[epochs == epoch], self.seed, *purpose)
            )
        step = self.pairs.batch(examples, np.concatenate(noise, 1))
        cuts = [slice(start, start + self.micro_batch) for start in range(0, self.batch_size, self.micro_batch)]
        return [step.part(cut, self._where(examples[cut])) for cut in cuts]

    def _where(self, examples: Int64) -> str:
        return f"training documents {listed(np.unique(self.pairs.documents(examples)) + 1)}"

    def state(self) -> State:
        return self._order.state()

    def load(self, state: State) -> None:
        self._order.load(state)


class TextPairEval:
    """The pairs of a held-out corpus in order, with the same noise for every model."""

    def __init__(self, pairs: TextPairs, batch_size: int) -> None:
        self.pairs, self.batch_size, self.text_bytes = pairs, batch_size, pairs.corpus.text_bytes

    def __len__(self) -> int:
        return -(-len(self.pairs) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, len(self.pairs), self.batch_size):
            examples = np.arange(first, min(first + self.batch_size, len(self.pairs)))
            yield self.pairs.batch(examples, held_out_noise(self.pairs.planes, self.pairs.length, examples))
