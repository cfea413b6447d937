"""Who sees whom: which answers move when a token is moved, and how far back a layer looks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llmlab.interpret.heads import Mixing
from llmlab.interpret.hooks import Patient, doubled, noise
from llmlab.model.places import Places

FAR = 2**20
AT_ONCE = 32


@dataclass(frozen=True)
class MaskKind:
    """`looking ahead` counts pairs of a token and a later one that it sees."""

    kind: str
    prefix: int
    ahead: int
    tokens: int


def mask_of(patient: Patient, ids: Tensor, encoder: bool = False) -> MaskKind:
    """The rule that the model follows where nothing but ids is given."""
    prefix, ahead, tokens = _ahead(patient, ids, encoder)
    if ahead == 0:
        return MaskKind("causal", 0, 0, tokens)
    if prefix == tokens:
        return MaskKind("bidirectional", tokens, ahead, tokens)
    fewer, *_ = _ahead(patient, ids[:, 1:], encoder)  # a prefix that the text marks comes one token sooner
    return MaskKind("prefix" if fewer == prefix else "blank", prefix, ahead, tokens)


def _ahead(patient: Patient, ids: Tensor, encoder: bool) -> tuple[int, int, int]:
    """(tokens that see a later one or are seen so, such pairs, tokens)."""
    layer = patient.layers(ids, encoder=encoder)[0].exact()
    x, rest = layer.x, layer.run()
    sees = torch.zeros(x.shape[1], x.shape[1], dtype=torch.bool)
    for j in range(x.shape[1]):
        moved = x.clone()
        moved[:, j] += noise(x.shape[-1], name="moved")
        sees[:, j] = ((layer.run(moved) - rest)[0].abs() > 1e-12).any(-1)
    ahead = sees.triu(1)
    reach = ahead.nonzero()
    return (1 + int(reach.max()) if len(reach) else 0), int(ahead.sum()), x.shape[1]


@dataclass(frozen=True)
class Window:
    """How many tokens back a layer sees, itself included (None: all), and how many first tokens besides."""

    window: int | None
    sinks: int


def windows_of(patient: Patient, mixings: list[Mixing], axes: int, encoder: bool = False) -> list[Window]:
    """Of every layer, by where its weights end: tokens all stand at position 0, so that encodings do not matter, and
    only their order moves."""

    def visible(orders: Tensor) -> Tensor:
        """bool [layers, T - 1]: does the last token see each of those before it?"""
        zero = torch.zeros_like(orders)
        position = torch.stack([zero, zero], -1) if axes == 2 else zero
        at = Places(position[None], orders[None], zero[None])
        layers = patient.layers(patient.ids[:, :1].expand(1, len(orders)), at, encoder)
        seen = []
        for layer, mixing in zip(layers, mixings, strict=True):
            nothing = torch.zeros(1, len(orders), mixing.head_dim, dtype=torch.float64)
            seen.append(mixing.weights(nothing, nothing, doubled(layer.sight))[0, 0, -1, :-1] > 0)
        return torch.stack(seen)

    def reach(layer: int, far: int, query: int | None) -> int:
        """The largest distance that is seen; or, with a query given, the largest order."""
        low, high = 0, far
        while high - low > 1:
            even = (low + (high - low) * n // (AT_ONCE + 1) for n in range(1, AT_ONCE + 1))
            steps = torch.tensor(sorted({max(low + 1, step) for step in even}))
            orders = torch.cat([steps, torch.tensor([query])]) if query else torch.cat([2 * FAR - steps, _end()])
            seen = visible(orders)[layer]
            inside, outside = steps[seen], steps[~seen]
            low = int(inside.max()) if len(inside) else low
            high = int(outside.min()) if len(outside) else high
        return low

    open_ = visible(torch.cat([2 * FAR - torch.tensor([FAR]), _end()]))[:, 0]
    found: dict[int, Window] = {}
    known: list[tuple[Tensor, Window]] = []
    ladder = torch.tensor([2**n for n in range(20)])
    marks = visible(torch.cat([2 * FAR - ladder, _end()]))
    fine = visible(torch.cat([2 * FAR - torch.arange(1, 65), _end()]))
    first = visible(torch.cat([torch.arange(0, 64), torch.tensor([2 * FAR])]))
    for depth in range(len(mixings)):
        if bool(open_[depth]):
            found[depth] = Window(None, 0)
            continue
        mark = torch.cat([marks[depth], fine[depth], first[depth]])
        alike = next((window for other, window in known if torch.equal(other, mark)), None)
        if alike is None:
            sinks = 0 if not bool(first[depth][0]) else 1 + reach(depth, FAR // 2, 2 * FAR)
            alike = Window(1 + reach(depth, FAR, None), sinks)
            known.append((mark, alike))
        found[depth] = alike
    return [found[depth] for depth in range(len(mixings))]


def _end() -> Tensor:
    return torch.tensor([2 * FAR])
