"""Quantised weights as files hold them: groups of 32 inputs, each with a step and a least value in half precision.

N rows, K inputs, R = K / 32 groups. What a file holds so goes to the native step as it is; `dense` is the same weights
in float32, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

GROUP = 32
_AT_ONCE = 1 << 16  # weights made dense at a time: few enough that they stay in the cache


@dataclass(frozen=True)
class Groups:
    """A matrix [N, K] of weights `step * code + least`. The arrays may be views of a mapped file: nothing is copied
    before it is used, and nothing may be written.

    `codes` uint8: [N, R, 16] of four bits (byte i holds input i low and input i + 16 high, as in GGUF), or [N, R, 32]
    of eight. `step`, `least` float16 [N, R], finite.
    """

    codes: npt.NDArray[np.uint8]
    step: npt.NDArray[np.float16]
    least: npt.NDArray[np.float16]

    @property
    def shape(self) -> torch.Size:
        """[N, K]."""
        return torch.Size((len(self.codes), self.codes.shape[1] * GROUP))

    @property
    def bits(self) -> int:
        return 4 if self.codes.shape[2] == GROUP // 2 else 8

    def rows(self, order: npt.NDArray[np.int64]) -> Groups:
        """The same matrix with its rows in this order."""
        return Groups(self.codes[order], self.step[order], self.least[order])

    def wide(self) -> npt.NDArray[np.uint8]:
        """The codes, one to a byte: [N, R, 32]."""
        return self.codes if self.bits == 8 else np.concatenate([self.codes & 15, self.codes >> 4], -1)

    def dense(self) -> Tensor:
        """float32 [N, K]."""
        rows, groups = self.step.shape
        weights = torch.empty(rows, groups, GROUP)
        out: npt.NDArray[Any] = weights.numpy()
        count = max(1, _AT_ONCE // (GROUP * groups))
        for first in range(0, rows, count):
            at = slice(first, first + count)
            part = out[at]
            if self.bits == 4:
                part[..., : GROUP // 2], part[..., GROUP // 2 :] = self.codes[at] & 15, self.codes[at] >> 4
            else:
                part[...] = self.codes[at]
            part *= self.step[at].astype(np.float32)[..., None]
            part += self.least[at].astype(np.float32)[..., None]
        return weights.view(rows, -1)


Weight = Tensor | Groups


def dense(weight: Weight) -> Tensor:
    """The weights themselves; a tensor is answered as it is."""
    return weight.dense() if isinstance(weight, Groups) else weight
