"""The sinusoidal formula in double precision, written from the paper, and what our encodings add to word vectors.

P positions, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from llmlab.model.encoding import Encoding, PositionPart, Shape
from llmlab.model.places import Places

BASE = 10_000.0


def frequencies(dim: int, base: float = BASE) -> Tensor:
    """float64 [D / 2]: base^(-2i / D) radians a position (Vaswani et al. 2017, arXiv 1706.03762, section 3.5)."""
    return float(base) ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)


def sinusoids(position_P: Tensor, dim: int) -> Tensor:
    """float64 [P, D]: sin and cos of position * frequency, in turn."""
    angle = position_P.double()[:, None] * frequencies(dim)
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)


def shift(steps: float, dim: int) -> Tensor:
    """float64 [D, D], M with M PE(p) = PE(p + steps) for every p: a block rotation, the same wherever p stands."""
    angle = steps * frequencies(dim)
    even = torch.arange(0, dim, 2)
    turn = torch.zeros(dim, dim, dtype=torch.float64)
    turn[even, even] = turn[even + 1, even + 1] = angle.cos()
    turn[even, even + 1] = angle.sin()
    turn[even + 1, even] = -angle.sin()
    return turn


def distance_apart(steps: Tensor, dim: int) -> Tensor:
    """float64 [P]: how far two sinusoids lie apart whose positions differ by `steps`, wherever they stand."""
    return (2 - 2 * (steps.double()[:, None] * frequencies(dim)).cos()).sum(1).sqrt()


def nearest(furthest: int, dim: int, rows: int = 50_000) -> tuple[int, float]:
    """Of two sinusoids up to `furthest` positions apart, the nearest: (positions apart, distance)."""
    found = (0, math.inf)
    for start in range(1, furthest + 1, rows):
        apart = distance_apart(torch.arange(start, min(start + rows, furthest + 1)), dim)
        at = int(apart.argmin())
        found = min(found, (start + at, float(apart[at])), key=lambda pair: pair[1])
    return found


def line(length: int, start: int = 0) -> Places:
    return Places.causal(1, length, start=start)


def added(encoding: Encoding, at: Places, dim: int) -> Tensor:
    """[P, D]: what an encoding adds to the word vectors of one row, zero for those that add nothing."""
    return encoding.embed(torch.zeros(1, at.position.shape[1], dim), at)[0].detach()


def built(part: PositionPart, head_dim: int, heads: int = 1, context: int = 128, one_way: bool = True) -> Encoding:
    """An encoding for one layer of these heads."""
    return part.build(Shape(heads * head_dim, heads, head_dim, context, 1, one_way))
