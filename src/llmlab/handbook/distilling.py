"""A large and a small model, each from scratch and each with the other as its teacher. Question 17."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from llmlab.handbook.training_ledger import Setup, V, held_out_loss, setup, take_steps
from llmlab.handbook.training_rows import Row
from llmlab.interpret.live_bytes import LiveBytes
from llmlab.model.transformer import Transformer
from llmlab.objectives.distill import Distilled
from llmlab.training.adamw import AdamW

SIZES: dict[str, dict[str, Any]] = {
    "large": {"layers": 3, "dim": 96},
    "small": {"layers": 2, "dim": 32},
}
HELD = 512  # rows that losses are measured on


def sized(size: str, rate: float | None = None) -> Setup:
    """The recipe of the ledger's first row, with a model of this size."""
    made = setup(Row(size), SIZES[size])
    if rate is None:
        return made
    optimizer = AdamW(lr=rate)
    return Setup(**vars(made) | {"training": made.training.model_copy(update={"optimizer": optimizer})})


def run(settings: Mapping[str, Any], seed: int) -> dict[str, float]:
    """Held-out nats a byte of the four, all after as many steps on the same rows."""
    steps, taught = settings["steps"], (settings["share"], settings["temperature"])

    def learnt(size: str, teacher: nn.Module | None = None) -> Transformer:
        made = sized(size, settings[f"{size}_rate"])
        model = made.architecture.build(V, seed)
        objective = None if teacher is None else Distilled(teacher, *taught)
        take_steps(model, made, steps, seed, objective=objective)
        return model

    models = {"large": learnt("large"), "small": learnt("small")}
    models |= {"large to small": learnt("small", models["large"]), "small to large": learnt("large", models["small"])}
    return {name: held_out_loss(model, rows=HELD) for name, model in models.items()}


def training_bytes(size: str, teacher: str | None = None, steps: int = 2) -> int:
    """The most bytes alive while one is trained, weights included, those of its teacher too."""
    made = sized(size)
    model = made.architecture.build(V, 0)
    other = None if teacher is None else sized(teacher).architecture.build(V, 1)
    known = [*model.parameters(), *([] if other is None else other.parameters())]
    with LiveBytes(known) as live:
        take_steps(model, made, steps, 0, objective=None if other is None else Distilled(other))
    return sum(int(tensor.nbytes) for tensor in known) + int(live.peak)


def weight_bytes(size: str) -> int:
    return sum(p.nbytes for p in sized(size).architecture.build(V, 0).parameters())
