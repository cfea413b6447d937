"""What packed rows become before a model learns from them: the frame that every objective of pretraining fills.

A corruption is a pure function of rows of text and of noise: uniform numbers in [0, 1), P planes of them a row, each
row's from a generator of its own. So it can be tried by hand with noise of one's own choice, any cut of a step into
micro-batches sees the same, and a resumed run has nothing to remember.

Shapes: B rows, T tokens, P planes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from llmlab.data.batch import IGNORE, Batch
from llmlab.model.places import Places
from llmlab.runtime import generator

Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
Noise = npt.NDArray[np.float64]


class Rows(NamedTuple):
    """Packed text, each [B, T]: the tokens, the one before each in its document (the begin token before the first),
    where they stand (`document` -1 is padding), and which are to be learnt."""

    before_BT: Int64
    tokens_BT: Int64
    position_BT: Int64
    document_BT: Int64
    learnt_BT: Bool

    @staticmethod
    def cat(groups: Sequence[Rows]) -> Rows:
        """Rows of several groups of one length below each other."""
        return groups[0] if len(groups) == 1 else Rows(*map(np.concatenate, zip(*groups, strict=True)))


@dataclass(frozen=True)
class Corruption:
    """`learn(rows, noise_PBT)` is what the model gets. `name` tells settings apart; `copies` None: new noise each
    epoch, else so many different epochs, taken in turn."""

    learn: Callable[[Rows, Noise], Batch]
    planes: int = 0
    name: str = ""
    copies: int | None = None

    def copy(self, epoch: int) -> int:
        """Which of the copies an epoch reads."""
        return epoch if self.copies is None else epoch % self.copies


def row_noise(planes: int, length: int, rows: Iterable[int], seed: int, *purpose: object) -> Noise:
    """[planes, rows, length], each row's from the generator of (seed, purpose, row)."""
    numbers = [
        torch.rand(planes, length, dtype=torch.float64, generator=generator(seed, *purpose, int(row))).numpy()
        for row in (rows if planes else ())
    ]
    return np.stack(numbers, 1) if numbers else np.empty((planes, 0, length))


def held_out_noise(planes: int, length: int, rows: Iterable[int]) -> Noise:
    """The same for every run, so that models of different seeds are asked the same."""
    return row_noise(planes, length, rows, 0, "held-out corruption")


def batch_of(
    ids_BT: Int64, targets_BT: Int64, learnt_BT: Bool, position: Int64, order_BT: Int64, document: Int64
) -> Batch:
    """A batch of arrays [B, T] (`position` may have a second axis); targets that are not learnt become -100."""
    places = (torch.from_numpy(np.ascontiguousarray(part)) for part in (position, order_BT, document))
    targets = np.where(learnt_BT, targets_BT, IGNORE)
    return Batch(torch.from_numpy(ids_BT), torch.from_numpy(targets), Places(*places))


def _following(rows: Rows, noise: Noise) -> Batch:
    order_BT = np.where(rows.document_BT < 0, np.arange(rows.tokens_BT.shape[1]), rows.position_BT)
    return batch_of(rows.before_BT, rows.tokens_BT, rows.learnt_BT, rows.position_BT, order_BT, rows.document_BT)


FOLLOWING = Corruption(_following)  # nothing is corrupted: each token is predicted from those before it
