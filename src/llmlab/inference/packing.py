"""Weights as the native step reads them: tiles of 16 outputs, groups of 32 inputs, each group beside its scales.

N outputs, K inputs, t tiles, g groups, o outputs of a tile. A packed matrix is one uint8 tensor:

    int4  4 x 64 bytes of codes, two to a byte; 16 steps and 16 least values in half precision: w = step code + least
    int8  8 x 64 bytes of codes, steps and least values the same way
    bf16  pairs of neighbouring inputs, 16 outputs side by side
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from llmlab.model.groups import GROUP, Groups, Weight, dense
from llmlab.model.quantized import checked
from llmlab.runtime import threads

TILE = 16
Kind = Literal["int4", "int8", "bf16"]
LARGEST = 65504 * 127 / 128  # the least value of int8 is 128 steps below 0, of which the weights use 127
KINDS: tuple[Kind, ...] = ("int4", "int8", "bf16")
BITS: dict[Kind, int] = {"int4": 4, "int8": 8, "bf16": 16}
HUGE_PAGE, CHUNK = 2 << 20, 32 << 20
_BYTES: dict[Kind, int] = {"int4": 320, "int8": 576, "bf16": 1024}  # of 16 outputs by 32 inputs


@dataclass(frozen=True)
class Packed:
    """A matrix [outputs, inputs] for the native step."""

    kind: Kind
    data: Tensor
    outputs: int
    inputs: int

    def rows(self, first: int, count: int) -> Packed:
        """Some of its outputs, whole tiles."""
        size = self.inputs // GROUP * _BYTES[self.kind]
        return Packed(self.kind, self.data[first // TILE * size : (first + count) // TILE * size], count, self.inputs)


def fits(outputs: int, inputs: int) -> bool:
    """Whether a matrix is whole tiles and groups."""
    return outputs % TILE == 0 and inputs % GROUP == 0


def pack(weight_NK: Weight, kind: Kind) -> Packed:
    """Lay a matrix out. What is quantised already keeps its codes and scales, where the kind has bits enough; else
    int4 takes each group's least value and step, so weights that already are 16 evenly spaced values a group come out
    as they were; int8 takes each group's largest magnitude.

    Errors: InputError for a weight that is not finite, or beyond what scales in half precision hold.
    """
    return pack_together([weight_NK], kind)


class Room:
    """Memory for the matrices of one model, at multiples of 64 bytes, which vector loads like. It lies in huge pages
    where the system has them: a step reads every weight once, and with small pages waits for their addresses too."""

    def __init__(self) -> None:
        self._chunk, self._used = torch.empty(0, dtype=torch.uint8), 0

    def take(self, size: int) -> Tensor:
        """So many bytes."""
        if self._used + size > len(self._chunk):
            self._chunk, self._used = _huge(max(size, CHUNK)), 0
        start, self._used = self._used, self._used + -(-size // 64) * 64
        return self._chunk[start : start + size]


def _huge(size: int) -> Tensor:
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(size + 64, dtype=torch.uint8)
    memory = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    return whole[-whole.data_ptr() % HUGE_PAGE :]


def pack_together(weights: Sequence[Weight], kind: Kind, room: Room | None = None) -> Packed:
    """Matrices that read the same inputs as one, their outputs one after another."""
    outputs, inputs = sum(weight.shape[0] for weight in weights), weights[0].shape[1]
    data, end = (room or Room()).take(outputs // TILE * (inputs // GROUP) * _BYTES[kind]), 0
    with threads(1):  # each part is soon done, and waiting for a thread that others keep from its core takes longer
        for weight in weights:
            start, end = end, end + weight.shape[0] // TILE * (inputs // GROUP) * _BYTES[kind]
            _lay(weight, kind, data[start:end])
    return Packed(kind, data, outputs, inputs)


def loses(weight_NK: Weight, kind: Kind) -> bool:
    """Whether packing would change a weight."""
    if isinstance(weight_NK, Groups):
        return kind == "bf16" or weight_NK.bits > BITS[kind]
    first, whole = weight_NK[:TILE], weight_NK  # most that lose do so at once
    return any(not torch.equal(unpacked(pack(part, kind)), part.float()) for part in (first, whole))


def quantised(weight_NK: Tensor, kind: Kind) -> Groups:
    """Codes, steps and least values of a float matrix."""
    weight_NK = checked(weight_NK, "weights", LARGEST)
    groups = weight_NK.float().view(len(weight_NK), -1, GROUP)
    if kind == "int4":
        least = groups.amin(-1).half().float()
        step = ((groups.amax(-1) - least) / 15).clamp(min=0).half().float()
        low, high = 0, 15
    else:
        step = (groups.abs().amax(-1) / 127).half().float()
        least = -128 * step
        low, high = 1, 255
    codes = ((groups - least[..., None]) / step.clamp(min=1e-12)[..., None]).round().clamp(low, high).to(torch.uint8)
    if kind == "int4":
        codes = codes[..., : GROUP // 2] | (codes[..., GROUP // 2 :] << 4)
    return Groups(codes.numpy(), step.half().numpy(), least.half().numpy())


def _lay(weight: Weight, kind: Kind, to: Tensor) -> None:
    """Write a matrix into its bytes."""
    outputs, inputs = weight.shape
    tiles, groups = outputs // TILE, inputs // GROUP
    if kind == "bf16":
        pairs = checked(dense(weight), "weights").bfloat16().contiguous().view(torch.int32)
        across = pairs.numpy().reshape(tiles, TILE, -1).transpose(0, 2, 1)
        to.numpy().view(np.int32).reshape(tiles, inputs // 2, TILE)[...] = across
        return
    if not isinstance(weight, Groups) or weight.bits > BITS[kind]:
        weight = quantised(dense(weight), kind)
    codes = (weight.codes if weight.bits == BITS[kind] else weight.wide()).view(np.uint32)
    # Sixteen outputs' four bytes side by side, line by line; the last line of a group is its scales.
    lines = to.numpy().view(np.uint32).reshape(tiles, groups, codes.shape[-1] + 1, TILE)
    lines[:, :, :-1] = codes.reshape(tiles, TILE, groups, -1).transpose(0, 2, 3, 1)
    scales = lines[:, :, -1].view(np.float16)
    for at, part in ((slice(TILE), weight.step), (slice(TILE, None), weight.least)):
        scales[..., at] = part.reshape(tiles, TILE, groups).transpose(0, 2, 1)


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
