"""A text of any length read in blocks, by what came last and the first few tokens: memory that does not grow.

As in `inference/rolling_cache.py` tokens are numbered within the cache and keys are held unturned (Xiao et al. 2023,
StreamingLLM, arXiv 2309.17453); but a whole block comes in one pass, in which the sinks stand where its first token
would have them. The window itself is the model's (`attention.window` and `.sinks`).

T new tokens, S columns, G key/value heads, K head width; one row.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from llmlab.inference.cache import tensors
from llmlab.model.places import Places


class Streamed:
    """The first `sinks` tokens, and those before a block that a window of `window` tokens reaches from it
    (`model.attention.Renumbering`). `widest` is the most columns there ever were."""

    def __init__(self, window: int, sinks: int) -> None:
        self.window, self.sinks, self.widest = window, sinks, 0
        self._places: Places | None = None
        self._kept = torch.empty(0, dtype=torch.int64)
        self.held: dict[int, tuple[Tensor, Tensor]] = {}  # layer -> keys and values [1, G, S, K]

    def _reached(self, at: Places) -> Tensor:
        """The columns that a block still sees."""
        if self._places is None:
            return self._kept
        order_S = self._places.order[0]
        return ((order_S < self.sinks) | (order_S > at.order[0, 0] - self.window)).nonzero()[:, 0]

    def renumber(self, at: Places) -> Places:
        first = len(self._reached(at))
        return replace(at, position=first + at.order - at.order[:, :1])

    def extend(self, at: Places) -> Places:
        self._kept = self._reached(at)
        held = at
        if self._places is not None:
            both = zip(tensors(self._places), tensors(at), strict=True)
            held = Places(*(torch.cat([old[:, self._kept], new], 1) for old, new in both))
        self._places = held
        self.widest = max(self.widest, held.order.shape[1])
        return replace(held, position=torch.arange(held.order.shape[1])[None])

    def update(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        new = k_BGTK, v_BGTK
        if layer in self.held:
            pairs = zip(self.held[layer], new, strict=True)
            new = tuple(torch.cat([old[:, :, self._kept], one], 2) for old, one in pairs)  # type: ignore[assignment]
        self.held[layer] = new
        return new

    def recall(self, layer: int) -> tuple[Tensor, ...] | None:
        return None

    def remember(self, layer: int, state: tuple[Tensor, ...]) -> None:
        raise NotImplementedError  # layers that keep a state need no window
