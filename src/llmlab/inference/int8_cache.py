"""Keys and values held in eight bits: a code a number and a half-precision scale a token and head.

(Sheng et al. 2023, FlexGen, arXiv 2303.06865, hold them in four bits in groups; this is the plainest such cache.)

Shapes: B rows, T new tokens, S all keys, G key/value heads, K head width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llmlab.inference.cache import DenseCache
from llmlab.model.places import Places


class Int8Cache:
    """A cache (`model.attention.Cache`) of two dense ones: codes int8 [B, G, S, K] and scales fp16 [B, G, S, 1].

    A number comes back within half a step, the step being the largest number of its token and head over 127; steps
    below 6e-5 are themselves rounded to 6e-8. What a layer without keys remembers stays as it is.
    """

    def __init__(self, capacity: int) -> None:
        self.codes, self.scales = DenseCache(capacity), DenseCache(capacity)

    @property
    def length(self) -> int:
        return self.codes.length

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    def room(self) -> int:
        return self.codes.room()

    def extend(self, at: Places) -> Places:
        self.scales.extend(at)
        return self.codes.extend(at)

    def update(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        (k_codes, k_scale), (v_codes, v_scale) = _quantised(k_BGTK), _quantised(v_BGTK)
        codes = self.codes.update(layer, k_codes, v_codes)
        scales = self.scales.update(layer, k_scale, v_scale)
        dtype = k_BGTK.dtype
        k_BGSK, v_BGSK = ((code.to(dtype) * scale).to(dtype) for code, scale in zip(codes, scales, strict=True))
        return k_BGSK, v_BGSK

    def recall(self, layer: int) -> tuple[Tensor, ...] | None:
        return self.codes.recall(layer)

    def remember(self, layer: int, state: tuple[Tensor, ...]) -> None:
        self.codes.remember(layer, state)

    def trim(self, length: int) -> None:
        """Forget every column from `length` on, as `DenseCache.trim`."""
        self.codes.trim(length)
        self.scales.trim(self.codes.length)

    def keep_rows(self, rows: Sequence[int]) -> None:
        self.codes.keep_rows(rows)
        self.scales.keep_rows(rows)


def _quantised(x_BGTK: Tensor) -> tuple[Tensor, Tensor]:
    scale = (x_BGTK.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-7).half()
    return (x_BGTK / scale).round().clamp(-127, 127).to(torch.int8), scale
