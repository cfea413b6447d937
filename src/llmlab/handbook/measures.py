"""How the formula-tier questions measure: keyed random inputs in double precision, and distances between results."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from llmlab.runtime import generator


def draw(seed: int, name: str, *shape: int) -> Tensor:
    """Standard normal float64 of this shape, keyed by (seed, name)."""
    return torch.randn(shape, generator=generator(seed, "handbook", name), dtype=torch.float64)


@torch.no_grad()
def filled(module: nn.Module, seed: int, name: str) -> nn.Module:
    """The module in float64 with every parameter drawn anew: matrices normal(0, 1 / fan-in), biases normal(0, 0.3),
    other vectors (gains) 1 + normal(0, 0.3). As in a trained model, nothing sits at its initial 0 or 1."""
    module = module.double()
    for parameter_name, parameter in module.named_parameters():
        noise = draw(seed, f"{name}.{parameter_name}", *parameter.shape)
        if parameter.ndim > 1:
            parameter.copy_(noise / parameter.shape[-1] ** 0.5)
        else:
            parameter.copy_(0.3 * noise + (0.0 if parameter_name.endswith("bias") else 1.0))
    return module


def gap(a: Tensor, b: Tensor) -> float:
    """The largest absolute difference."""
    return float((a - b).detach().abs().max())


def relative(a: Tensor, b: Tensor) -> float:
    """Root mean square of a - b in units of the root mean square of b."""
    return float((a - b).detach().square().mean().sqrt() / b.detach().square().mean().sqrt())


def curvature(function: Callable[[Tensor], Tensor], at: float) -> float:
    """The second derivative of a function of one number, by autograd in float64."""
    x = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(function(x), x, create_graph=True)
    (second,) = torch.autograd.grad(slope, x)
    return float(second)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def power(value: float) -> str:
    """A tiny number as people write it: 3e-15, and plain 0 when it is exactly that."""
    return f"{value:.0e}" if value else "0"
