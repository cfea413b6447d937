"""A little language model of the bundled book, one token a byte, and what is left of it without one of its parts.

N rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmlab.data import bundled
from llmlab.handbook.fitting import fit
from llmlab.handbook.question import Figures
from llmlab.model.block import Block
from llmlab.model.transformer import Architecture, Transformer
from llmlab.recipe import parse
from llmlab.runtime import generator

VOCABULARY = 256
LENGTH, DIM, LAYERS, HEADS = 64, 64, 4, 4
HELD_OUT = 0.1  # share of the book, its end, that nothing is trained on
TESTED = 128  # rows
PARTS: Mapping[str, Mapping[str, Any]] = {  # what an architecture says once a part of it is gone, if it can say it
    "residual": {},
    "norm": {},
    "position": {"position": "none"},
    "mask": {"mask": "bidirectional"},
    "feedforward": {},
    "heads": {"attention": {"kind": "mha", "heads": 1}},
}
MEASURES = ("whole", *(f"without {part}" for part in PARTS))


def architecture(**other: Any) -> Architecture:
    told = {
        "layers": LAYERS,
        "dim": DIM,
        "context": LENGTH,
        "position": "learned",
        "attention": {"kind": "mha", "heads": HEADS},
        "feedforward": "gelu",
    }
    return parse(Architecture, told | other)


def book() -> tuple[Tensor, Tensor]:
    """The bundled book's bytes as uint8, to train on and held out."""
    text = torch.frombuffer(bytearray(bundled.path("moby_dick").read_bytes()), dtype=torch.uint8)
    end = round(len(text) * (1 - HELD_OUT))
    return text[:end], text[end:]


def passages(text: Tensor, count: int, length: int, source: torch.Generator) -> Tensor:
    """int64 [N, length]: pieces of the text that begin anywhere."""
    start_N = torch.randint(len(text) - length, (count,), generator=source)
    return text[start_N[:, None] + torch.arange(length)].long()


def nats(model: Callable[[Tensor], Tensor], row_NT: Tensor) -> Tensor:
    """The mean loss of each token of these rows from those before it."""
    logits = model(row_NT[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), row_NT[:, 1:].flatten())


def pretrained(settings: Mapping[str, Any], seed: int) -> Transformer:
    """The model, trained to say the next byte."""
    model = architecture().build(VOCABULARY, seed)
    text, source = book()[0], generator(seed, "handbook", "little model")

    def loss(step: int) -> Tensor:
        return nats(model, passages(text, settings["rows"], LENGTH + 1, source))

    fit(model, loss, settings["steps"], settings["rate"], settings["adamw_rate"])
    return model


def without(model: Transformer, part: str) -> Transformer:
    """The same weights without one part: no addition around attention and feed-forward, norms that change nothing but
    for the last, no positions, no mask, no feed-forward, or one head as wide as all."""
    changed = architecture(**PARTS[part]).build(VOCABULARY, 0)
    changed.load_state_dict(model.state_dict(), strict=part != "position")
    for block in changed.blocks:
        assert isinstance(block, Block)
        match part:
            case "norm":
                block.attention_norm = block.feedforward_norm = nn.Identity()
            case "residual":
                block.forward = _unadded(block)  # type: ignore[method-assign]
            case "feedforward":
                nn.init.zeros_(block.get_parameter("feedforward.down.weight"))
    return changed.eval()


def _unadded(block: Block) -> Any:
    def forward(x: Tensor, sight: Any, layer: int, memory: Any = None) -> Tensor:
        x = block.attention(block.attention_norm(x), sight, layer)
        y: Tensor = block.feedforward(block.feedforward_norm(x))
        return y

    return forward


@torch.no_grad()
def ablated(settings: Mapping[str, Any], seed: int) -> Figures:
    """Loss on held-out text, nats a byte: of the whole model, and without each of its parts."""
    with torch.enable_grad():
        model = pretrained(settings, seed)
    row_NT = passages(book()[1], TESTED, LENGTH + 1, generator(seed, "handbook", "little model", "test"))
    found = {"whole": float(nats(model, row_NT))}
    return found | {f"without {part}": float(nats(without(model, part), row_NT)) for part in PARTS}
