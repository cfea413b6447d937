"""Which normalisation a module computes, by what its answer ignores."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmlab.interpret.hooks import apart, noise, size


@dataclass(frozen=True)
class NormKind:
    """What was found: `shift` is how far the answer moves when a constant is added to the input, `offset` what the
    function adds to its learnt gain, `partial` the share of the width that it measures."""

    kind: str
    eps: float
    bias: bool
    offset: float
    partial: float
    shift: float


def is_norm(function: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether the answer keeps its size when the input, already large, grows tenfold."""
    large, larger = function(1e3 * x / size(x)), function(1e4 * x / size(x))
    return large.shape == x.shape and size(large) > 0 and apart(large, larger) < 1e-3


def examine(module: nn.Module, width: int) -> NormKind:
    """What this norm over `width` coordinates computes. LayerNorm ignores a constant added to all coordinates;
    RMSNorm does not, since it takes no mean away (Zhang & Sennrich 2019, arXiv 1910.07467)."""
    norm = copy.deepcopy(module).double()
    x, zero = noise(width, name="norm"), torch.zeros(width, dtype=torch.float64)
    base = norm(zero)
    y = norm(x) - base
    shift = size(norm(x + 3) - base - y) / size(y)
    moved = norm(x + 1e-3 * torch.eye(width, dtype=torch.float64)) - base - y  # row j: coordinate j was moved
    others = moved.masked_fill(torch.eye(width, dtype=torch.bool), 0).abs().amax(1)
    measured = int((others > 1e-12).sum())
    centred = shift < 1e-6
    unit = x - x.mean() if centred else x
    variance = float(unit[:measured].square().mean()) if measured else 1.0
    small = (1e-6 / variance) ** 0.5
    big = norm(1e9 * x) - base
    kept = float(((norm(small * x) - base) * big).sum() / big.square().sum())
    eps = 1e-6 * (kept**-2 - 1)
    bias, offset = False, 0.0
    gain = y / (unit / (variance + eps) ** 0.5)
    for parameter in norm.parameters():
        with torch.no_grad():
            parameter.add_(1)
            moves_zero = not torch.equal(norm(zero), base)
            parameter.sub_(1)
        if moves_zero:
            bias = True
        elif parameter.numel() == width:
            offset = float((gain - parameter).median())
    return NormKind("layernorm" if centred else "rmsnorm", eps, bias, round(offset, 6), measured / width, shift)
