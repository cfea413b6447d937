"""GaLore (Zhao et al. 2024, arXiv 2403.03507): Adam's moments in a few directions of each gradient."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from llmlab.training.adamw import AdamW, adam_direction, adamw
from llmlab.training.optimizer import (
    COUNTER,
    Optimizer,
    OptimizerPart,
    Rule,
    Shapes,
    hidden_matrices,
    hidden_shapes,
    trained,
)


class GaLore(OptimizerPart):
    """A hidden matrix's gradient is projected on its `rank` largest singular directions, on the matrix's shorter side;
    Adam runs there and its step is projected back (Zhao et al. 2024). Everything else gets AdamW.

    The directions are taken anew from the gradient of every `refresh`-th step; moments stay as they are, as in the
    paper. The singular vectors are exact (LAPACK), so equal gradients give equal bytes.
    """

    kind: Literal["galore"] = "galore"
    rank: int = Field(32, gt=0, description="directions that are kept of each matrix's shorter side")
    refresh: int = Field(200, gt=0, description="steps between new directions")
    scale: float = Field(0.25, gt=0, description="factor of what is projected back")
    betas: tuple[float, float] = Field((0.9, 0.95), description="decay of the two moments")
    eps: float = Field(1e-8, gt=0.0, description="added to the root of the second moment")
    weight_decay: float = Field(0.1, ge=0.0, description="decay of matrices, times the learning rate, a step")

    def build(self, model: nn.Module) -> Optimizer:
        names, hidden = trained(model), hidden_matrices(model)
        others = [parameter for name, parameter in names.items() if name not in hidden]
        options = self.model_dump(include={"lr", "betas", "eps", "weight_decay", "rank", "refresh", "scale"})
        parts: list[torch.optim.Optimizer] = [Projected(list(hidden.values()), options)] if hidden else []
        if others:
            parts.append(adamw(others, self.lr, self.betas, self.eps, self.weight_decay))
        return Optimizer(parts, names)

    def state_bytes(self, shapes: Shapes) -> int:
        hidden, others = hidden_shapes(shapes)
        total = AdamW().state_bytes(others)
        for out, into in hidden.values():
            short, long = sorted((out, into))
            total += 4 * min(self.rank, short) * (short + 2 * long) + COUNTER
        return total

    def scratch_bytes(self, shapes: Shapes) -> int:
        """A step projected back, and a gradient's three factors where directions are taken anew."""
        hidden, _ = hidden_shapes(shapes)
        return max((4 * (out * into + 2 * min(out, into) ** 2) for out, into in hidden.values()), default=0)


class Projected(Rule):
    """GaLore's update of a matrix. `directions` is [short side, rank]."""

    def update(self, parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: Mapping[str, Any]) -> None:
        tall = parameter.shape[0] > parameter.shape[1]
        g = (gradient.T if tall else gradient).float()  # [short, long]
        rank = min(group["rank"], len(g))
        if not state:
            state["step"] = torch.tensor(0.0)
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = g.new_zeros(rank, g.shape[1])
        if int(state["step"].item()) % group["refresh"] == 0:
            state["directions"] = torch.linalg.svd(g, full_matrices=False).U[:, :rank].clone()
        state["step"] += 1
        small = adam_direction(
            state["directions"].T @ g, state["exp_avg"], state["exp_avg_sq"], state["step"].item(), group
        )
        full = state["directions"] @ small
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(full.T if tall else full, alpha=-group["lr"] * group["scale"])
