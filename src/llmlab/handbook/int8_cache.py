"""Keys and values held in eight bits: a code a number and a half-precision scale a token and head.

(Sheng et al. 2023, FlexGen, arXiv 2303.06865, hold them in four bits in groups; this is the plainest such cache.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmlab.inference.cache import DenseCache
from llmlab.model.places import Places


class Int8Cache:
    """A cache (`model.attention.Cache`) of two dense ones: codes int8 [B, G, S, K] and scales fp16 [B, G, S, 1]."""

    def __init__(self, capacity: int) -> None:
        self.codes, self.scales = DenseCache(capacity), DenseCache(capacity)

    def extend(self, at: Places) -> Places:
        self.scales.extend(at)
        return self.codes.extend(at)

    def update(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        (k_codes, k_scale), (v_codes, v_scale) = _quantised(k_BGTK), _quantised(v_BGTK)
        codes = self.codes.update(layer, k_codes, v_codes)
        scales = self.scales.update(layer, k_scale, v_scale)
        k_BGSK, v_BGSK = (code.to(k_BGTK.dtype) * scale for code, scale in zip(codes, scales, strict=True))
        return k_BGSK, v_BGSK

    def recall(self, layer: int) -> tuple[Tensor, ...] | None:
        return self.codes.recall(layer)

    def remember(self, layer: int, state: tuple[Tensor, ...]) -> None:
        self.codes.remember(layer, state)


def _quantised(x_BGTK: Tensor) -> tuple[Tensor, Tensor]:
    scale = (x_BGTK.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-7).half()
    return (x_BGTK / scale).round().clamp(-127, 127).to(torch.int8), scale
