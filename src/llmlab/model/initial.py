"""Initial weights, keyed by (seed, parameter name): arms that differ in one part share all other weights."""

from __future__ import annotations

import torch
from torch import nn

from llmlab.runtime import generator


@torch.no_grad()
def initialise(model: nn.Module, seed: int, std: float, layers: int) -> None:
    """Matrices normal(0, std), those that write into the residual stream / sqrt(2 layers) (Radford et al. 2019, GPT-2);
    gains 1, biases 0."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        residual = name.endswith(("attention.output.weight", "feedforward.down.weight"))
        scale = std / (2 * layers) ** 0.5 if residual else std
        parameter.normal_(0.0, scale, generator=generator(seed, "initial", name))
