"""How much of a loss's gradient reaches a token far back, by distance: recurrent nets against attention, one depth.

B rows, T tokens, D width, N distances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmlab.model.transformer import Architecture, Transformer
from llmlab.recipe import parse
from llmlab.runtime import generator

DISTANCES = (16, 32, 64, 128, 256)
LAYERS, DIM, HEADS, VOCABULARY, ROWS = 2, 32, 4, 32, 16
SETTINGS = {"reach": [*DISTANCES, LAYERS, DIM, HEADS, VOCABULARY, ROWS]}


def untrained(mixer: str, seed: int) -> Transformer:
    """The model in float64 with initial weights: rotary positions with attention, none with a recurrent net."""
    attends = mixer == "mha"
    told: dict[str, Any] = {"layers": LAYERS, "dim": DIM, "context": DISTANCES[0], "initial_std": None}
    told |= {
        "position": "rope" if attends else "none",
        "attention": {"kind": mixer, "heads": HEADS} if attends else mixer,
    }
    return parse(Architecture, told).build(VOCABULARY, seed).double()


def stretched(model: Transformer, gain: float) -> Transformer:
    """The same recurrent model with recurrent matrices that stretch every state by `gain`: orthogonal ones, scaled."""
    for name, parameter in model.named_parameters():
        if "weight_hh" in name:
            parameter.data = gain * torch.linalg.qr(parameter.data).Q
    return model


def reached(model: Transformer, distance: int, seed: int) -> tuple[float, float]:
    """Norms of gradients of the loss at a token `distance` after the first, means over rows of random text: by the
    first token's embedding, and by all weights of the blocks."""
    ids_BT = torch.randint(VOCABULARY, (ROWS, distance + 2), generator=generator(seed, "handbook", "reach", distance))
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: Any, x_BTD: Tensor) -> None:
        x_BTD.retain_grad()
        kept.append(x_BTD)

    handle = model.embedding.register_forward_hook(keep)
    logits_BTV = model(ids_BT[:, :-1])
    handle.remove()
    model.zero_grad()
    F.cross_entropy(logits_BTV[:, -1], ids_BT[:, -1], reduction="sum").backward()  # type: ignore[no-untyped-call]
    gradient_BTD = kept[0].grad
    assert gradient_BTD is not None
    weights = [p.grad.square().sum() for p in model.blocks.parameters() if p.grad is not None]
    return float(gradient_BTD[:, 0].norm(dim=-1).mean()), math.sqrt(float(sum(weights))) / ROWS


def per_token(values: Sequence[float]) -> float:
    """Nats that the logarithm falls a token between the last two distances: constant where the decay is exponential."""
    return (math.log(values[-2]) - math.log(values[-1])) / (DISTANCES[-1] - DISTANCES[-2])
