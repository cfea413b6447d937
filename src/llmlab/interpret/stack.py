"""A stack of blocks taken apart, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llmlab.interpret.activation import FeedForwardKind, feedforward_of
from llmlab.interpret.heads import HeadKind, Mixing
from llmlab.interpret.hooks import Layer, Patient, doubled
from llmlab.interpret.mask_kind import MaskKind, mask_of
from llmlab.interpret.position_kind import places
from llmlab.interpret.wiring import Parts, Wired, parts_of, wiring_of
from llmlab.model.attention import Sight
from llmlab.model.places import Places


@dataclass(frozen=True)
class Taken:
    """A block taken apart."""

    parts: Parts
    wired: Wired
    mixing: Mixing
    heads: HeadKind
    feedforward: FeedForwardKind


class Stack:
    """The blocks of a decoder or an encoder, each taken apart once; a block used at several depths is taken once."""

    def __init__(self, patient: Patient, encoder: bool = False) -> None:
        self.patient, self.encoder = patient, encoder
        self.layers, self.in_order = patient.open_layers(encoder)
        self.axes = 1 if self.layers[0].sight.at.position.ndim == 2 else 2
        self.mask: MaskKind = mask_of(patient, patient.ids, encoder)
        self._passes: dict[bytes, list[Sight]] = {}
        once: dict[nn.Module, Taken] = {}
        for layer in self.layers:
            if layer.block not in once:
                once[layer.block] = self._take(layer.exact())
        self.taken = [once[layer.block] for layer in self.layers]
        self.norms = list(dict.fromkeys(norm for taken in once.values() for norm in taken.parts.norms))

    def _take(self, layer: Layer) -> Taken:
        parts = parts_of(layer)
        mixing = Mixing(layer, parts.mixer)
        still = places(torch.zeros(2, dtype=torch.long), self.axes, self.in_order)
        heads = mixing.kind(self.sight(still, layer.depth))
        feedforward = feedforward_of(parts.feedforward, layer.x.shape[-1])
        return Taken(parts, wiring_of(layer, parts), mixing, heads, feedforward)

    def sight(self, at: Places, depth: int) -> Sight:
        """What the layer at this depth sees of tokens at these places."""
        key = b"".join(part.numpy().tobytes() for part in (at.position, at.order, at.document, at.segments))
        if key not in self._passes:
            ids = self.patient.ids[:, :1].expand(1, at.order.shape[1])
            self._passes[key] = [layer.sight for layer in self.patient.layers(ids, at, self.encoder)]
        return doubled(self._passes[key][depth])

    def each(self, ask: Callable[[Taken], Hashable]) -> Any:
        """The one answer of all layers; where they differ, each with its layers."""
        return told([ask(taken) for taken in self.taken])


def told(values: Sequence[Hashable]) -> Any:
    """The one value of all; where they differ, each with the numbers of those that have it."""
    if len(set(values)) == 1:
        return values[0]
    return {str(value): [i for i, v in enumerate(values) if v == value] for value in dict.fromkeys(values)}
