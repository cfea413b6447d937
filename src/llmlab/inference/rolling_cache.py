"""A cache that does not grow: the newest tokens and the first few, for texts without end.

(Xiao et al. 2023, StreamingLLM, arXiv 2309.17453: attention leans on the first tokens, whatever they are, and a model
goes to pieces once they leave the cache; kept as sinks, they let it read on for ever.)

Shapes: B rows, T new tokens, S columns, G key/value heads, K head width.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from llmlab.inference.cache import DenseCache, tensors
from llmlab.model.places import Places


class RollingCache(DenseCache):
    """`sinks` first tokens and the `window` newest, each row its own; the oldest of the others is written over.

    Tokens are numbered within the cache, as in the paper: those of the window keep their distances, the sinks stand
    right before the window. So no number is ever larger than `sinks + window - 1`, however long the text. Keys are held
    as they were before their positions turned them, since a number changes while its key stays
    (`model.attention.Renumbering`). Texts are causal: a token's order is its number.

    Once a text is longer than that its tokens come one at a time (`room`): in one pass of several each would need the
    sinks at another distance.
    """

    def __init__(self, window: int, sinks: int) -> None:
        super().__init__(window + sinks)
        self.window, self.sinks = window, sinks
        self._slots: Tensor | None = None  # [B]: where the new token goes; None: behind the others

    def room(self) -> int:
        return max(super().room(), 1)

    def renumber(self, at: Places) -> Places:
        """Where new tokens stand within the cache."""
        return replace(at, position=at.position - self._behind(at.order))

    def _behind(self, order: Tensor) -> Tensor:
        """How far the numbers within the cache lie behind the text's, once it holds tokens up to these."""
        return (order - (self.capacity - 1)).clamp(min=0)

    def extend(self, at: Places) -> Places:
        if self.length < self.capacity or self._places is None:
            self._slots = None
            return super().extend(at)
        if at.order.shape[1] > 1:
            raise ValueError("a rolling cache that is full takes one token at a time")
        held = self._places
        # Padding is written over first, then the oldest token that is no sink.
        age = held.order.masked_fill(held.order < self.sinks, torch.iinfo(torch.int64).max).masked_fill(~held.real, -1)
        self._slots = age.argmin(1)
        for buffer, new in zip(tensors(held), tensors(at), strict=True):
            buffer.scatter_(1, self._slots[:, None], new)
        return replace(held, position=held.order - torch.where(held.order < self.sinks, 0, self._behind(at.order)))

    def trim(self, length: int) -> None:
        """Forget what came last. A full cache no longer holds what came before it: all is forgotten."""
        super().trim(0 if length < self.length == self.capacity else length)

    def _put(self, buffers: dict[int, Tensor], layer: int, new_BGTK: Tensor) -> Tensor:
        if self._slots is None:
            return super()._put(buffers, layer, new_BGTK)
        buffer = buffers[layer]
        buffer[torch.arange(len(buffer), device=buffer.device), :, self._slots] = new_BGTK[:, :, 0]
        return buffer
