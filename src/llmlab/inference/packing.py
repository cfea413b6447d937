"""Weights as the native step reads them: tiles of 16 outputs, groups of 32 inputs, each group beside its scales.

N outputs, K inputs, t tiles, g groups, o outputs of a tile. A packed matrix is one uint8 tensor:

    int4  4 x 64 bytes of codes, two to a byte; 16 steps and 16 least values in half precision: w = step code + least
    int8  8 x 64 bytes of codes, steps and least values the same way
    bf16  pairs of neighbouring inputs, 16 outputs side by side
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from llmlab.model.quantized import checked

TILE, GROUP = 16, 32
Kind = Literal["int4", "int8", "bf16"]
LARGEST = 65504 * 127 / 128  # the least value of int8 is 128 steps below 0, of which the weights use 127
KINDS: tuple[Kind, ...] = ("int4", "int8", "bf16")


@dataclass(frozen=True)
class Packed:
    """A matrix [outputs, inputs] for the native step."""

    kind: Kind
    data: Tensor
    outputs: int
    inputs: int


def fits(outputs: int, inputs: int) -> bool:
    """Whether a matrix is whole tiles and groups."""
    return outputs % TILE == 0 and inputs % GROUP == 0


def pack(weight_NK: Tensor, kind: Kind) -> Packed:
    """Quantise a float matrix and lay it out. int4 takes each group's least value and step, so weights that already
    are 16 evenly spaced values a group come out as they were; int8 takes each group's largest magnitude.

    Errors: InputError for a weight that is not finite, or beyond what scales in half precision hold.
    """
    outputs, inputs = weight_NK.shape
    weight_NK = checked(weight_NK, "weights", None if kind == "bf16" else LARGEST)
    if kind == "bf16":
        pairs = weight_NK.bfloat16().view(outputs // TILE, TILE, inputs // 2, 2)
        return Packed(kind, _bytes(pairs.transpose(1, 2)), outputs, inputs)
    groups = weight_NK.float().view(outputs, -1, GROUP)
    if kind == "int4":
        least = groups.amin(-1).half().float()
        step = ((groups.amax(-1) - least) / 15).clamp(min=0).half().float()
        low, high = 0, 15
    else:
        step = (groups.abs().amax(-1) / 127).half().float()
        least = -128 * step
        low, high = 1, 255
    codes = ((groups - least[..., None]) / step.clamp(min=1e-12)[..., None]).round().clamp(low, high)
    return laid_out(codes.to(torch.uint8), step.half(), least.half(), kind)


def laid_out(codes: Tensor, step: Tensor, least: Tensor, kind: Kind) -> Packed:
    """Codes uint8 [N, g, 32] with half-precision steps and least values [N, g], as the step reads them."""
    outputs, groups, _ = codes.shape
    tiles = codes.view(outputs // TILE, TILE, groups, 8, 4).permute(0, 2, 3, 1, 4).reshape(-1, groups, 8, TILE * 4)
    if kind == "int4":
        tiles = tiles[:, :, :4] | (tiles[:, :, 4:] << 4)
    scales = [part.view(-1, TILE, groups).transpose(1, 2).contiguous().view(torch.uint8) for part in (step, least)]
    data = torch.cat([tiles.flatten(2), *scales], -1)
    return Packed(kind, _bytes(data), outputs, groups * GROUP)


def unpacked(packed: Packed) -> Tensor:
    """float32 [N, K]: exactly the weights that the step multiplies by."""
    outputs, inputs = packed.outputs, packed.inputs
    tiles, groups = outputs // TILE, inputs // GROUP
    if packed.kind == "bf16":
        pairs = packed.data.view(torch.bfloat16).view(tiles, inputs // 2, TILE, 2)
        return pairs.transpose(1, 2).reshape(outputs, inputs).float()
    data = packed.data.view(tiles, groups, -1)
    codes = data[..., :-64].reshape(tiles, groups, -1, TILE, 4)
    if packed.kind == "int4":
        codes = torch.cat([codes & 15, codes >> 4], 2)
    scales = data[..., -64:].contiguous().view(torch.half).view(tiles, groups, 2, 1, TILE, 1).float()
    weights = codes * scales[:, :, 0] + scales[:, :, 1]
    return weights.permute(0, 3, 1, 2, 4).reshape(outputs, inputs)


def _bytes(data: Tensor) -> Tensor:
    """The same numbers as bytes at a multiple of 64, which vector loads like."""
    flat = data.contiguous().view(torch.uint8).flatten()
    room = torch.empty(flat.numel() + 64, dtype=torch.uint8)
    start = -room.data_ptr() % 64
    return room[start : start + flat.numel()].copy_(flat)
