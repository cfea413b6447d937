"""The scalar head: one number a token, for reward models and critics."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ScalarHead(nn.Module):
    """[B, T, D] -> [B, T]; starts at zero, so that an untrained reward or value is 0 everywhere."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        return hidden_BTD.float() @ self.weight + self.bias
