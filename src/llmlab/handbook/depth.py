"""What depth does to a stack before it is trained, by wiring: the stream's size, gradients, and how far one step moves
the answer. Questions 44 to 47.

B rows, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.model.places import Places
from llmlab.model.transformer import Architecture, Transformer
from llmlab.recipe import parse
from llmlab.runtime import generator

ROWS, LENGTH, DIM, HEADS, VOCABULARY = 4, 16, 32, 4, 64
RATE = 1e-7  # so small that the answer moves in proportion, so large that float64 sees it


def architecture(wiring: Any, layers: int) -> Architecture:
    """LayerNorm, ReLU, Glorot's weights: the setting of the DeepNorm paper, at a toy's width."""
    told = {"layers": layers, "dim": DIM, "context": LENGTH, "norm": "layernorm", "feedforward": "relu"}
    attention = {"kind": "mha", "heads": HEADS}
    return parse(Architecture, {**told, "attention": attention, "wiring": wiring, "initial_std": None})


def untrained(wiring: Any, layers: int, seed: int) -> Transformer:
    """The model in float64 with initial weights."""
    return architecture(wiring, layers).build(VOCABULARY, seed).double()


def texts(seed: int) -> tuple[Tensor, Tensor]:
    """Random ids [B, T] and random answers to them."""
    drawn = torch.randint(VOCABULARY, (2, ROWS, LENGTH), generator=generator(seed, "handbook", "depth"))
    return drawn[0], drawn[1]


@dataclass(frozen=True)
class Start:
    """A model before its first step. `gradients`: norm of the loss's gradient by each block's last matrix. `stream`:
    variance over the width of what leaves each block. `sgd` and `adam`: how far the final hidden states move, a token,
    per unit of the rate, when every matrix of the blocks takes one step (Adam's first is the gradient's sign)."""

    gradients: list[float]
    stream: list[float]
    sgd: float
    adam: float


def start(wiring: Any, layers: int, seed: int) -> Start:
    return started(untrained(wiring, layers, seed), seed)


def started(model: Transformer, seed: int) -> Start:
    layers = len(model.blocks)
    ids_BT, answers_BT = texts(seed)
    at = Places.causal(ROWS, LENGTH)
    stream: list[float] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, __, x_BTD: stream.append(float(x_BTD.detach().var(-1).mean())))
    hidden_BTD = model.hidden(ids_BT, at)
    stream = stream[:layers]
    matrices = [parameter for parameter in model.blocks.parameters() if parameter.ndim > 1]
    last = [block.get_parameter("feedforward.down.weight") for block in model.blocks]
    loss = F.cross_entropy(model.logits(hidden_BTD).flatten(0, 1), answers_BT.flatten())
    by = dict(zip(matrices, torch.autograd.grad(loss, matrices), strict=True))

    @torch.no_grad()
    def moved(step: Callable[[Tensor], Tensor]) -> float:
        for parameter, gradient in by.items():
            parameter.sub_(RATE * step(gradient))
        after_BTD = model.hidden(ids_BT, at)
        for parameter, gradient in by.items():
            parameter.add_(RATE * step(gradient))
        return float((after_BTD - hidden_BTD).norm(dim=-1).mean()) / RATE

    return Start([float(by[one].norm()) for one in last], stream, moved(lambda g: g), moved(torch.sign))


def initial_ratios(layers: int, seed: int) -> tuple[list[float], list[float]]:
    """Size of DeepNorm's initial matrices over Post-LN's: of values, outputs and feed-forwards; of queries and keys."""
    theirs = dict(untrained("post", layers, seed).blocks.named_parameters())
    scaled: list[float] = []
    left: list[float] = []
    for name, parameter in untrained("deepnorm", layers, seed).blocks.named_parameters():
        if parameter.ndim > 1:
            ratio = float(parameter.detach().norm() / theirs[name].detach().norm())
            (left if name.endswith(("query.weight", "key.weight")) else scaled).append(ratio)
    return scaled, left


# ---------------------------------------------------------------- over depths and seeds


def slope(depths: Sequence[int], values: Sequence[float]) -> float:
    """The exponent k of values ~ depth^k: least squares in logarithms."""
    x, y = [math.log(depth) for depth in depths], [math.log(value) for value in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def geometric(values: Sequence[float]) -> float:
    """The geometric mean, for what spreads over orders of magnitude."""
    return math.exp(sum(map(math.log, values)) / len(values))
