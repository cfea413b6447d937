"""Adafactor (Shazeer and Stern 2018, arXiv 1804.04235), by torch's own rule: a second moment of rows and columns."""

from math import prod
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from llmlab.training.optimizer import COUNTER, Optimizer, OptimizerPart, Shapes, by_decay, largest, trained


class Adafactor(OptimizerPart):
    """No first moment, and of a matrix's second moment its row and column means (Shazeer and Stern 2018).

    A step is the learning rate, at most 1 / sqrt(step), times the size of the weights, at least `smallest`.
    """

    kind: Literal["adafactor"] = "adafactor"
    lr: float = Field(0.02, gt=0.0, description="relative learning rate at the schedule's top")
    decay: float = Field(-0.8, lt=0.0, description="a step's share of the second moment is step to this power")
    smallest: float = Field(1e-3, gt=0.0, description="the size that smaller weights are taken to have")
    threshold: float = Field(1.0, ge=1.0, description="largest root mean square of an update")
    weight_decay: float = Field(0.0, ge=0.0, description="decay of matrices, times the learning rate, a step")

    def build(self, model: nn.Module) -> Optimizer:
        names = trained(model)
        rule = torch.optim.Adafactor(
            by_decay(names.values(), self.weight_decay),
            lr=self.lr,
            beta2_decay=self.decay,
            eps=(None, self.smallest),
            d=self.threshold,
            foreach=False,
        )
        return Optimizer([rule], names)

    def state_bytes(self, shapes: Shapes) -> int:
        total = 0
        for shape in shapes.values():
            *stacked, rows, columns = shape if len(shape) > 1 else (1, *shape)
            total += 4 * (prod(stacked) * (rows + columns) if len(shape) > 1 else columns) + COUNTER
        return total

    def scratch_bytes(self, shapes: Shapes) -> int:
        return 4 * largest(shapes)  # the second moment written out, which becomes the update
