"""Initial weights, keyed by (seed, parameter name): arms that differ in one part share all other weights."""

from __future__ import annotations

import math

import torch
from torch import nn

from llmlab.model.recurrent import Recurrent
from llmlab.runtime import generator


@torch.no_grad()
def initialise(model: nn.Module, seed: int, std: float | None, layers: int, betas: dict[str, float]) -> None:
    """Matrices normal(0, std), those that write into the residual stream / sqrt(2 layers) (Radford et al. 2019, GPT-2);
    gains 1, biases 0. Without a std it is Glorot's, sqrt(2 / (in + out)) (2010), and nothing is divided.

    `betas` has a factor for what lies below a name: DeepNorm's, of value, output and feed-forward, which then are not
    divided either.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(0.0 if "bias" in name.rpartition(".")[2] else 1.0)
            continue
        scale = math.sqrt(2 / (parameter.shape[0] + parameter.shape[-1])) if std is None else std
        beta = next((beta for stack, beta in betas.items() if name.startswith(stack)), None)
        if beta is not None and name.endswith(DEEPNORM):
            scale *= beta
        elif beta is None and std is not None and name.endswith(RESIDUAL):
            scale /= (2 * layers) ** 0.5
        parameter.normal_(0.0, scale, generator=generator(seed, "initial", name))
    for name, module in model.named_modules():
        if hasattr(module, "initialise"):
            module.initialise()
        if isinstance(module, Recurrent):
            _recurrent(module, seed, name)


RESIDUAL = ("attention.output.weight", "cross.output.weight", "feedforward.down.weight")
DEEPNORM = (
    *("attention.value.weight", "attention.output.weight", "cross.value.weight", "cross.output.weight"),
    *("feedforward.up.weight", "feedforward.gate.weight", "feedforward.down.weight"),
)


def _recurrent(module: Recurrent, seed: int, name: str) -> None:
    """uniform(-1/sqrt(hidden), 1/sqrt(hidden)), as torch has it: 0.02 would forget within a few tokens. An LSTM's
    forget gates start open (Jozefowicz, Zaremba & Sutskever 2015)."""
    bound = module.net.hidden_size**-0.5
    for own, parameter in module.net.named_parameters():
        parameter.uniform_(-bound, bound, generator=generator(seed, "initial", name, own))
        if isinstance(module.net, nn.LSTM) and own.startswith("bias_ih"):
            parameter[module.net.hidden_size : 2 * module.net.hidden_size] = 1.0
