"""Muon (Jordan et al. 2024): orthogonalised momentum, by torch's own rule."""

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from llmlab.training.adamw import AdamW, adamw
from llmlab.training.optimizer import (
    Optimizer,
    OptimizerPart,
    Shapes,
    hidden_matrices,
    hidden_shapes,
    numbers,
    trained,
)


class Muon(OptimizerPart):
    """Orthogonalised momentum for hidden matrices (Jordan et al. 2024), AdamW for embeddings, head, norms, biases.

    An update of an [out, in] matrix is scaled by sqrt(max(1, out / in)) as in Jordan's code.
    """

    kind: Literal["muon"] = "muon"
    lr: float = Field(0.02, gt=0.0, description="learning rate of the hidden matrices at the schedule's top")
    momentum: float = Field(0.95, ge=0.0, lt=1.0, description="decay of the momentum of the hidden matrices")
    weight_decay: float = Field(0.1, ge=0.0, description="decay of matrices, times their learning rate, a step")
    adamw_lr: float = Field(3e-3, gt=0.0, description="learning rate of everything else at the schedule's top")
    betas: tuple[float, float] = Field((0.9, 0.95), description="decay of the two moments of everything else")
    eps: float = Field(1e-8, gt=0.0, description="added to the root of the second moment of everything else")

    def build(self, model: nn.Module) -> Optimizer:
        names, hidden = trained(model), hidden_matrices(model)
        others = [parameter for name, parameter in names.items() if name not in hidden]
        parts: list[torch.optim.Optimizer] = []
        if hidden:
            parts.append(
                torch.optim.Muon(
                    list(hidden.values()), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
                )
            )
        if others:
            parts.append(adamw(others, self.adamw_lr, self.betas, self.eps, self.weight_decay))
        return Optimizer(parts, names)

    def state_bytes(self, shapes: Shapes) -> int:
        hidden, others = hidden_shapes(shapes)
        return 4 * numbers(hidden) + AdamW().state_bytes(others)

    def scratch_bytes(self, shapes: Shapes) -> int:
        """The momentum in float32, and in bfloat16 the matrix before and after a turn of the iteration and its two
        square ones."""
        hidden, _ = hidden_shapes(shapes)
        return max((8 * out * into + 4 * min(out, into) ** 2 for out, into in hidden.values()), default=0)
