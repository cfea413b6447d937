"""Weights held exactly as a file has them: codes with a step and a least value a group of 32 inputs (`groups.py`).

What is frozen needs no floats of its own: each product makes its matrix of the codes and forgets it (`quantized.py`).
N rows, K inputs, R = K / 32 groups.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmlab.model.groups import GROUP, Groups
from llmlab.model.quantized import QuantizedLinear

_AT_ONCE = 1 << 22  # weights made dense at a time: those of a layer, where the head of a vocabulary is many layers


class StoredLinear(QuantizedLinear):
    """`codes` uint8 [N, R, 16] of four bits or [N, R, 32] of eight, `step` and `least` fp16 [N, R]."""

    codes: Tensor
    step: Tensor
    least: Tensor

    def __init__(self, codes: Tensor, step_NR: Tensor, least_NR: Tensor, bias: Tensor | None = None) -> None:
        super().__init__(GROUP * codes.shape[1], len(codes), bias)
        self.register_buffer("codes", codes)
        self.register_buffer("step", step_NR)
        self.register_buffer("least", least_NR)

    @classmethod
    def of(cls, groups: Groups, bias: Tensor | None = None) -> StoredLinear:
        """A copy of what may be a view of a mapped file."""
        codes, step, least = (torch.from_numpy(part.copy()) for part in (groups.codes, groups.step, groups.least))
        return cls(codes, step, least, bias)

    @property
    def weight(self) -> Tensor:
        return dense_groups(self.codes, self.step, self.least)

    def pieces(self) -> Iterator[tuple[slice, Tensor]]:
        count = max(1, _AT_ONCE // self.in_features)
        for first in range(0, self.out_features, count):
            rows = slice(first, first + count)
            yield rows, dense_groups(self.codes[rows], self.step[rows], self.least[rows])

    def groups(self) -> Groups | str:
        return Groups(self.codes.numpy(), self.step.numpy(), self.least.numpy())

    def prepare(self) -> str | None:
        return "held as the file has it, for training"

    def packed(self, x_MK: Tensor) -> Tensor:
        raise NotImplementedError  # `prepare` says that there is no kernel


class StoredEmbedding(nn.Module):
    """An embedding table held so; `linear` multiplies by the very same codes, for a head that is tied to it."""

    def __init__(self, linear: StoredLinear) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = linear.out_features, linear.in_features
        self.linear = linear

    @property
    def weight(self) -> Tensor:
        return self.linear.weight

    def forward(self, ids: Tensor) -> Tensor:
        """int64 [...] -> float32 [..., D]."""
        table, shape = self.linear, ids.shape
        parts = (F.embedding(ids.flatten(), part.flatten(1)) for part in (table.codes, table.step, table.least))
        codes, step, least = parts
        return dense_groups(codes.view(-1, *table.codes.shape[1:]), step, least).view(*shape, -1)


def dense_groups(codes: Tensor, step_NR: Tensor, least_NR: Tensor) -> Tensor:
    """float32 [N, K]; the same numbers as `Groups.dense`."""
    wide = codes if codes.shape[2] == GROUP else torch.cat([codes & 15, codes >> 4], -1)
    return wide.float().mul_(step_NR.float()[..., None]).add_(least_NR.float()[..., None]).flatten(1)
