"""How positions are told, by moving them: what is added to embeddings, and what scores make of distance.

B rows, T tokens, S keys, H heads, K head width, E embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llmlab.errors import InputError
from llmlab.interpret.heads import Mixing
from llmlab.interpret.hooks import Patient, apart, noise, size
from llmlab.model.attention import Sight
from llmlab.model.places import Places

Sights = Callable[[Places], Sight]
FAR = 2**20
SCANNED = 160


@dataclass(frozen=True)
class PositionKind:
    """The encoding's name, its settings as found, and the numbers that tell."""

    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    evidence: dict[str, float] = field(default_factory=dict)


def places(position: Tensor, axes: int, in_order: bool = False) -> Places:
    """One row at these positions [T] or [T, axes], in which every token sees every other, or what came before."""
    if position.ndim == 1 and axes == 2:
        position = torch.stack([position, torch.zeros_like(position)], -1)
    line = torch.arange(len(position))[None]
    return Places(position[None], line if in_order else torch.zeros_like(line), torch.zeros_like(line))


# ---------------------------------------------------------------- added to embeddings


def absolute_of(patient: Patient, axes: int, encoder: bool = False) -> PositionKind:
    """What is added to the vectors of tokens, with the table silenced: nothing, waves of radius 1, or a table that
    ends."""

    def added(position: Tensor) -> Tensor:
        ids = patient.ids[:, :1].expand(1, len(position))
        at = places(position, axes, in_order=True)
        return patient.embedded(ids, at, torch.zeros_like, encoder)[0].double()

    first = added(torch.arange(2))
    moved = apart(first[1], first[0]) if size(first) else 0.0
    if moved == 0:
        return PositionKind("none", {}, {"added at position 1": size(first)})
    last = _last(lambda position: added(torch.tensor([position])))
    if last is not None:
        rows = [p for p in patient.model.parameters() if p.ndim == 2 and p.shape[1] == first.shape[1]]
        same = [(p.double() == first[0]).all(1).nonzero() for p in rows]
        offset = next((int(hit[0]) for hit in same if len(hit)), 0)
        return PositionKind("learned", {"positions": last + 1, "offset": offset}, {"moved by a position": moved})
    pairs = first[1].view(-1, 2)
    radius = float((pairs.norm(dim=1) - 1).abs().max())
    if radius > 1e-4:
        return PositionKind("unknown", {}, {"off the unit circle by": radius})
    base = _base(torch.atan2(pairs[:, 0], pairs[:, 1]))[0]
    return PositionKind("sinusoidal", {"base": base}, {"off the unit circle by": radius})


def _last(ask: Callable[[int], object]) -> int | None:
    """The last position that is not refused; None where none is."""

    def taken(position: int) -> bool:
        try:
            ask(position)
        except (InputError, IndexError):
            return False
        return True

    if taken(FAR):
        return None
    low, high = 1, FAR
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if taken(middle) else (low, middle)
    return low


# ---------------------------------------------------------------- in attention


def relative_of(
    mixing: Mixing, sights: Sights, axes: int, in_order: bool, reach: int, same: dict[bytes, PositionKind]
) -> PositionKind:
    """What positions do to the attention weights for queries and keys of our choice. Nothing depends on the model's
    texts here: a bias shows with all queries and keys zero, a distance's own key with the keys zero, its value with the
    values zero, a rotation with neither. `reach` is how many positions there are, `same` remembers rotations, which
    most layers share."""
    length, K = min(8, max(2, reach - 3)), mixing.head_dim
    line, shift = torch.arange(length), min(3, reach - length)
    q, k = (noise(1, length, K, name=name) for name in "qk")
    zero = torch.zeros_like(q)

    def logs(q: Tensor, k: Tensor, position: Tensor) -> Tensor:
        """[H, T, S] against each token's own weight, keys up to the token; nothing for other cells."""
        weights = mixing.weights(q, k, sights(places(position, axes, in_order)))[0]
        told = weights.log() - weights.log().diagonal(dim1=1, dim2=2)[..., None]
        return told.tril().nan_to_num(0, 0, 0)

    both = logs(q, k, line)
    evidence = {
        "moved by distance": float((both - logs(q, k, line * 0)).abs().max()),
        "moved by a shift of all": float((both - logs(q, k, line + shift)).abs().max()),
        "bias": float(logs(zero, zero, line).abs().max()),
        "distance keys": float((logs(q, zero, line) - logs(zero, zero, line)).abs().max()),
        "distance values": mixing.unweighed(sights(places(line, axes, in_order)), length),
    }
    if evidence["moved by distance"] < 1e-9 and evidence["distance values"] < 1e-12:
        return PositionKind("none", {}, evidence)
    if evidence["distance values"] > 1e-12:
        told = _told_apart(mixing, sights, axes, reach)
        return PositionKind("shaw", {"distances told apart": told}, evidence)
    if evidence["bias"] < 1e-9 and evidence["distance keys"] < 1e-9:
        key = both.float().numpy().tobytes()
        if key not in same:
            same[key] = _rotary(mixing, sights, axes, evidence)
        return same[key]
    if evidence["distance keys"] > 1e-9:
        return PositionKind("xl", {"distances told apart": _told_apart(mixing, sights, axes, reach)}, evidence)
    bias = logs(zero, zero, line)
    slope = -bias[:, 1, 0]
    ramp = float((bias + slope[:, None, None] * (line[:, None] - line).clamp(min=0)).abs().max())
    evidence["off a straight line by"] = ramp
    if ramp < 1e-5:
        return PositionKind("alibi", {"slopes": [round(s, 6) for s in slope.tolist()]}, evidence)
    return PositionKind("t5", {"distances told apart": _told_apart(mixing, sights, axes, reach)}, evidence)


def _told_apart(mixing: Mixing, sights: Sights, axes: int, reach: int) -> int:
    """How many distances up to a bound have a weight of their own, on the side of what came before."""
    line, K = torch.arange(min(reach, SCANNED)), mixing.head_dim
    q = noise(1, 1, K, name="q").expand(1, len(line), K)
    k = torch.zeros_like(q)
    weights = mixing.weights(q, k, sights(places(line, axes)))[0, :, -1].log()
    return 1 + int(((weights[:, 1:] - weights[:, :-1]).abs().amax(0) > 1e-9).sum())


def _rotary(mixing: Mixing, sights: Sights, axes: int, evidence: dict[str, float]) -> PositionKind:
    """Every coordinate as a query against every coordinate as a key, one position apart: what is turned, with which
    partner, and by which angle."""
    K = mixing.head_dim
    one = torch.eye(K, dtype=torch.float64)
    q = one[:, None].expand(K, K + 2, K)
    k = torch.cat([one, one.new_zeros(2, K)])[None].expand(K, K + 2, K)

    def table(axis: int, away: int) -> Tensor:
        position = torch.zeros(K + 2, axes, dtype=torch.long)
        position[-1, axis] = away
        at = places(position if axes > 1 else position[:, 0], axes)
        told = mixing.weights(q, k, sights(at))[:, 0, -1].log()
        return told[:, :K] - told[:, K : K + 1]

    turned, layouts, all_angles = 0, set(), []
    for axis in range(axes):
        still, moved = table(axis, 0), table(axis, 1)
        # An angle below float32's reach still shows as a sine: off the diagonal, where nothing else stands.
        which = ((moved - still).abs() > 1e-11).any(1).nonzero()[:, 0]
        if not len(which):
            continue
        across = (moved - moved.diag().diag()).abs()
        partner = across.argmax(1)
        angle = torch.atan2(across.amax(1), moved.diag())[which[which < partner[which]]]
        gap = int(partner[which[0]] - which[0])
        layouts.add("pair" if len(which) == 2 else "rope_interleaved" if gap == 1 else "rope")
        turned += len(which)
        all_angles.append(angle)
    base, off = _base(all_angles[0])
    settings: dict[str, Any] = {"base": base, "fraction": turned / K}
    if axes > 1:
        settings["axes"] = len(all_angles)
    evidence |= {"fastest angle": float(all_angles[0].max()), "slowest angle": float(all_angles[0].min())}
    evidence["off a geometric series by"] = off
    kind = layouts.pop() if len(layouts) == 1 else "unknown"
    return PositionKind("rope" if kind == "pair" else kind, settings, evidence)


def _base(angles: Tensor) -> tuple[float, float]:
    """The base of base^(-i / P), and the largest relative distance of an angle from that series. One pair has none."""
    told = angles.sort(descending=True).values.double()
    pairs = len(told)
    if pairs < 2:
        return 0.0, 0.0
    base = float((told[0] / told[-1]) ** (pairs / (pairs - 1)))
    series = told[0] * base ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    digits = 4 - int(math.log10(max(base, 1)))
    return round(base, max(digits, 0) if digits > -3 else digits), float((told / series - 1).abs().max())
