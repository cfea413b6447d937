"""Lion (Chen et al. 2023, arXiv 2302.06675): the sign of a momentum, one moment instead of two."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from llmlab.training.optimizer import PIECE, Optimizer, OptimizerPart, Rule, Shapes, by_decay, largest, numbers, trained


class Lion(OptimizerPart):
    """Every weight moves by the learning rate, up or down (Chen et al. 2023). Rates are 3 to 10 times below AdamW's,
    weight decay as many times above."""

    kind: Literal["lion"] = "lion"
    lr: float = Field(2e-4, gt=0.0, description="learning rate at the schedule's top")
    betas: tuple[float, float] = Field((0.9, 0.99), description="share of the momentum in the sign; its decay")
    weight_decay: float = Field(0.5, ge=0.0, description="decay of matrices, times the learning rate, a step")

    def build(self, model: nn.Module) -> Optimizer:
        names = trained(model)
        groups = by_decay(names.values(), self.weight_decay)
        return Optimizer([SignMomentum(groups, {"lr": self.lr, "betas": self.betas})], names)

    def state_bytes(self, shapes: Shapes) -> int:
        return 4 * numbers(shapes)

    def scratch_bytes(self, shapes: Shapes) -> int:
        return 4 * min(PIECE, largest(shapes))


class SignMomentum(Rule):
    """Lion's update."""

    def update(self, parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: Mapping[str, Any]) -> None:
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
        shown, decay = group["betas"]
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        rows = (parameter.view(-1), gradient.reshape(-1), state["exp_avg"].view(-1))
        for weight, slope, momentum in zip(*(torch.split(row, PIECE) for row in rows), strict=True):
            weight.add_(momentum.lerp(slope, 1 - shown).sign_(), alpha=-group["lr"])
            momentum.lerp_(slope, 1 - decay)
