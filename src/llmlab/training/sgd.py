"""Plain gradient descent, with momentum or without."""

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from llmlab.training.optimizer import Optimizer, OptimizerPart, Shapes, by_decay, largest, numbers, trained


class SGD(OptimizerPart):
    """Stochastic gradient descent; momentum 0 keeps no state at all. Decay is added to the gradient."""

    kind: Literal["sgd"] = "sgd"
    lr: float = Field(0.1, gt=0.0, description="learning rate at the schedule's top")
    momentum: float = Field(0.0, ge=0.0, lt=1.0, description="decay of the running gradient; 0: none is kept")
    weight_decay: float = Field(0.0, ge=0.0, description="share of a matrix that is added to its gradient")

    def build(self, model: nn.Module) -> Optimizer:
        names = trained(model)
        groups = by_decay(names.values(), self.weight_decay)
        return Optimizer([torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, foreach=False)], names)

    def state_bytes(self, shapes: Shapes) -> int:
        return 4 * numbers(shapes) if self.momentum else 0

    def scratch_bytes(self, shapes: Shapes) -> int:
        return 4 * largest(shapes) if self.weight_decay else 0
