"""Heads: what is read off the last hidden states.

B rows, T tokens, D width, E width of the embedding table, N classes.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from llmlab.model.feedforward import Plain
from llmlab.model.linear import Linear
from llmlab.recipe import KINDS, Section


class ScalarHead(nn.Module):
    """[B, T, D] -> [B, T]; starts at zero, so that an untrained reward or value is 0 everywhere."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        return hidden_BTD.float() @ self.weight + self.bias


class PlainHead(Section):
    """One linear map to the vocabulary."""

    kind: Literal["linear"] = "linear"
    bias: bool = Field(False, description="whether each token has a bias")
    scale: float = Field(1.0, gt=0, description="what hidden states are multiplied by before it (T5: dim^-0.5)")


class TransformedHead(Section):
    """A linear map, an activation and a norm before the map to the vocabulary (BERT's masked-token head)."""

    kind: Literal["transformed"] = "transformed"
    activation: Annotated[Plain, *KINDS] = Field(description="the activation; its width and bias are not used")
    bias: bool = Field(True, description="whether each token has a bias")


class NoHead(Section):
    """Hidden states are the output (sentence encoders)."""

    kind: Literal["none"] = "none"


Head = Annotated[PlainHead | TransformedHead | NoHead, *KINDS]


class Transform(nn.Module):
    """[..., D] -> [..., E]."""

    def __init__(self, linear: Linear, activation: Plain, norm: nn.Module) -> None:
        super().__init__()
        self.linear, self.activation, self.norm = linear, activation.activation(), norm

    def forward(self, hidden: Tensor) -> Tensor:
        y: Tensor = self.norm(self.activation(self.linear(hidden)))
        return y


class PooledHead(nn.Module):
    """tanh of a linear map of the first token (BERT's pooler), then classes: whether the second text follows the
    first (BERT), or the order of two (ALBERT)."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.pool = Linear(dim, dim)
        self.classify = Linear(dim, classes) if classes else None

    def pooled(self, hidden_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, D]."""
        return torch.tanh(self.pool(hidden_BTD[:, 0]))

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, N]."""
        assert self.classify is not None
        y: Tensor = self.classify(self.pooled(hidden_BTD))
        return y
