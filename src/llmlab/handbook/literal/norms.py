"""Normalisations as the handbook words them, and BatchNorm for contrast."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from llmlab.recipe import Section

EPS = 1e-5


class NoGain(Section):
    """Question 42: RMSNorm without a learnt gain."""

    kind: Literal["llmlab.handbook.literal.norms:NoGain"] = "llmlab.handbook.literal.norms:NoGain"

    def build(self, dim: int) -> nn.Module:
        return BareRootMeanSquare()


class BareRootMeanSquare(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)).to(x.dtype)


class WholeInput(Section):
    """Question 43: RMSNorm over the entire input, all tokens of a row in one mean."""

    kind: Literal["llmlab.handbook.literal.norms:WholeInput"] = "llmlab.handbook.literal.norms:WholeInput"

    def build(self, dim: int) -> nn.Module:
        return WholeRootMeanSquare(dim)


class WholeRootMeanSquare(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        axes = tuple(range(1, x.ndim))
        return self.weight * (wide * torch.rsqrt(wide.square().mean(axes, keepdim=True) + EPS)).to(x.dtype)


class Batch(Section):
    """Question 44: statistics over the batch, moving averages of them at test (Ioffe & Szegedy 2015, BatchNorm)."""

    kind: Literal["llmlab.handbook.literal.norms:Batch"] = "llmlab.handbook.literal.norms:Batch"
    momentum: float = 0.1

    def build(self, dim: int) -> nn.Module:
        return BatchStatistics(dim, self.momentum)


class BatchStatistics(nn.Module):
    """Over all tokens of all rows, padding included. The averages are parameters without gradient, so that they travel
    with the weights."""

    def __init__(self, dim: int, momentum: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))
        self.mean_bias = nn.Parameter(torch.zeros(dim), requires_grad=False)
        self.variance = nn.Parameter(torch.ones(dim), requires_grad=False)
        self.momentum = momentum

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        if self.training:
            axes = tuple(range(x.ndim - 1))
            mean, variance = wide.mean(axes), wide.var(axes, unbiased=False)
            with torch.no_grad():
                self.mean_bias.lerp_(mean, self.momentum)
                self.variance.lerp_(variance, self.momentum)
        else:
            mean, variance = self.mean_bias, self.variance
        return ((wide - mean) * torch.rsqrt(variance + EPS) * self.weight + self.bias).to(x.dtype)
