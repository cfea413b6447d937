"""DeepNorm as the handbook codes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class NormedMLP(nn.Module):
    """Questions 44 and 45: linear, norm, ReLU, layer after layer, then a linear without a norm. What enters a layer is
    added to nothing, and there is neither attention nor a factor: a plain network that goes by the name of DeepNorm."""

    def __init__(
        self, inputs: int, hidden: Sequence[int], outputs: int, norm: Callable[[int], nn.Module] = nn.LayerNorm
    ) -> None:
        super().__init__()
        widths = [inputs, *hidden]
        self.linears = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        self.norms = nn.ModuleList(norm(width) for width in hidden)
        self.last = nn.Linear(widths[-1], outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[rows, inputs] -> [rows, outputs]."""
        for linear, norm in zip(self.linears, self.norms, strict=True):
            x = torch.relu(norm(linear(x)))
        y: Tensor = self.last(x)
        return y
