"""The linear map of every block. Adapters and quantised linears take its place and keep its call."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

# Who is computing: nobody in particular, one role for the whole batch, or one role a row.
Role = str | tuple[str, ...] | None


class Linear(nn.Linear):
    """y = x W^T + b. `role` picks an adapter where one was put on; the plain map has none and ignores it."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:  # there is nothing to fill, and torch would import 800 modules to do it
            super().reset_parameters()

    def forward(self, x: Tensor, role: Role = None) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Wrapped(nn.Module):
    """What stands in the place of a linear, its `base`, and does more than it: the base alone is another model."""
