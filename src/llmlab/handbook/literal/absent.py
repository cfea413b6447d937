"""A feed-forward network that is not there: what attention can do alone."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from llmlab.model.linear import Role
from llmlab.recipe import Section


class Absent(Section):
    """Question 6: a block is its attention and nothing else (Elhage et al. 2021's attention-only models)."""

    kind: Literal["llmlab.handbook.literal.absent:Absent"] = "llmlab.handbook.literal.absent:Absent"

    def hidden_width(self, dim: int) -> int:
        return 0

    def build(self, dim: int) -> nn.Module:
        return Nothing()


class Nothing(nn.Module):
    def forward(self, x_BTD: Tensor, role: Role = None) -> Tensor:
        return torch.zeros_like(x_BTD)
