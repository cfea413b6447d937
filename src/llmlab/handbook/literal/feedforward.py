"""Feed-forward networks as the handbook prints them."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmlab.model.feedforward import Activation, FeedForward
from llmlab.model.linear import Linear, Role
from llmlab.recipe import Section


def gelu_without_cube(x: Tensor) -> Tensor:
    """Questions 50 and 53: 0.044715 x where 0.044715 x^3 belongs; the same as x sigmoid(1.667 x)."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x)))


class GELUWithoutCube(Section):
    """Question 50."""

    kind: Literal["llmlab.handbook.literal.feedforward:GELUWithoutCube"] = (
        "llmlab.handbook.literal.feedforward:GELUWithoutCube"
    )
    width: int | None = None
    bias: bool = False

    def hidden_width(self, dim: int) -> int:
        return self.width or 4 * dim

    def build(self, dim: int) -> nn.Module:
        return FeedForward(dim, self.hidden_width(dim), self.bias, gelu_without_cube)


class OneMatrixGLU(Section):
    """Questions 52 and 54: x sigmoid(W x), neither a second projection nor an output matrix, and no wider than x."""

    kind: Literal["llmlab.handbook.literal.feedforward:OneMatrixGLU"] = (
        "llmlab.handbook.literal.feedforward:OneMatrixGLU"
    )
    bias: bool = False

    def hidden_width(self, dim: int) -> int:
        return dim

    def build(self, dim: int) -> nn.Module:
        return SelfGate(dim, self.bias, torch.sigmoid)


class OneMatrixGEGLU(Section):
    """Question 53: x GELU(W x), with that question's GELU."""

    kind: Literal["llmlab.handbook.literal.feedforward:OneMatrixGEGLU"] = (
        "llmlab.handbook.literal.feedforward:OneMatrixGEGLU"
    )
    bias: bool = False

    def hidden_width(self, dim: int) -> int:
        return dim

    def build(self, dim: int) -> nn.Module:
        return SelfGate(dim, self.bias, gelu_without_cube)


class NoFeedForward(Section):
    """Question 49: the block without its feed-forward half."""

    kind: Literal["llmlab.handbook.literal.feedforward:NoFeedForward"] = (
        "llmlab.handbook.literal.feedforward:NoFeedForward"
    )
    bias: bool = False

    def hidden_width(self, dim: int) -> int:
        return 0

    def build(self, dim: int) -> nn.Module:
        return Nothing()


class SelfGate(nn.Module):
    def __init__(self, dim: int, bias: bool, activation: Activation) -> None:
        super().__init__()
        self.gate = Linear(dim, dim, bias)
        self.activation = activation

    def forward(self, x_BTD: Tensor, role: Role = None) -> Tensor:
        return x_BTD * self.activation(self.gate(x_BTD, role))


class Nothing(nn.Module):
    def forward(self, x_BTD: Tensor, role: Role = None) -> Tensor:
        return F.relu(x_BTD) * 0
