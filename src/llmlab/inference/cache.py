"""Keys and values of tokens already seen, so that a new token costs one position and not the whole text.

Shapes: B rows, T new tokens, S all keys, G key/value heads, K head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from llmlab.errors import InputError
from llmlab.model.attention import Cache
from llmlab.model.places import Places


class RowCache(Cache, Protocol):
    """A cache whose rows may leave, change places and be doubled, for texts that grow together."""

    @property
    def nbytes(self) -> int:
        """Bytes of all that is held: keys, values, places and states, whether columns are in use or not."""

    def room(self) -> int:
        """How many columns the next forward pass may bring."""

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Row i becomes what was row `rows[i]`, which may be named once, often or not at all."""


class DenseCache:
    """One preallocated buffer a layer; every row has as many columns as the widest, shorter ones padded on the left.

    Rows, heads, widths and dtypes are those of the first tensors that arrive, so any model fits, also under autocast.
    `capacity` is in columns. Columns beyond `length` hold nothing: a forward pass that was interrupted leaves them
    dirty, and `trim` puts the cache back.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0
        self._places: Places | None = None  # [B, capacity]
        self._keys: dict[int, Tensor] = {}  # layer -> [B, G, capacity, K]
        self._values: dict[int, Tensor] = {}
        self._states: dict[int, tuple[Tensor, ...]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers, of keys and values, places and states; 0 before the first tokens arrive."""
        places = [] if self._places is None else tensors(self._places)
        states = [part for state in self._states.values() for part in state]
        return sum(buffer.nbytes for buffer in (*self._keys.values(), *self._values.values(), *places, *states))

    def room(self) -> int:
        """How many columns are free."""
        return self.capacity - self.length

    def extend(self, at: Places) -> Places:
        """Make room for new tokens at these places [B, T]; the places of all keys [B, S]."""
        new = at.order.shape[1]
        end = self.length + new
        if end > self.capacity:
            raise InputError("cache", f"{end} tokens do not fit into a cache of {self.capacity}")
        if self._places is None:
            self._places = _buffers(at, self.capacity)
        held = self._places
        for buffer, new_values in zip(tensors(held), tensors(at), strict=True):
            buffer[:, self.length : end] = new_values
        self._start, self.length = self.length, end
        return held[:, :end]

    def update(self, layer: int, k_BGTK: Tensor, v_BGTK: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values; all of them, [B, G, S, K], as views of the buffers."""
        return self._put(self._keys, layer, k_BGTK), self._put(self._values, layer, v_BGTK)

    def _put(self, buffers: dict[int, Tensor], layer: int, new_BGTK: Tensor) -> Tensor:
        rows, heads, _, width = new_BGTK.shape
        if layer not in buffers:
            buffers[layer] = new_BGTK.new_empty(rows, heads, self.capacity, width)
        buffer = buffers[layer]
        buffer[:, :, self._start : self.length] = new_BGTK
        return buffer[:, :, : self.length]

    def recall(self, layer: int) -> tuple[Tensor, ...] | None:
        """The state that a layer without keys left, rows first; None before the first call."""
        return self._states.get(layer)

    def remember(self, layer: int, state: tuple[Tensor, ...]) -> None:
        """Keep that state."""
        self._states[layer] = state

    def trim(self, length: int) -> None:
        """Forget every column from `length` on. A state has no columns: where there is one, all is forgotten."""
        if self._states and length < self.length:
            self._states, length = {}, 0
        self.length = min(self.length, length)

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Row i becomes what was row `rows[i]`, which may be named once, often or not at all: rows leave, change
        places and are doubled. Rows that stay in place are not copied, unless there are more of them than before."""
        if self._places is None:
            return
        moves = [(new, old) for new, old in enumerate(rows) if new != old]
        to, source = [new for new, _ in moves], [old for _, old in moves]

        def kept(buffer: Tensor) -> Tensor:
            columns = (slice(None),) * (buffer.ndim - 3) + (slice(0, self.length),)  # nothing lies beyond
            if len(rows) > len(buffer):
                more = buffer.new_empty(len(rows), *buffer.shape[1:])
                more[(slice(None), *columns)] = buffer[(list(rows), *columns)]
                return more
            if moves:
                buffer[(to, *columns)] = buffer[(source, *columns)]
            return buffer[: len(rows)]

        self._places = Places(*map(kept, tensors(self._places)))
        for layer, state in self._states.items():
            self._states[layer] = tuple(part[torch.as_tensor(rows)] for part in state)
        for buffers in (self._keys, self._values):
            for layer, buffer in buffers.items():
                buffers[layer] = kept(buffer)


def tensors(places: Places) -> list[Tensor]:
    """Its tensors, each [B, T] or [B, T, 2], those that are there."""
    every = (places.position, places.order, places.document, places.segment)
    return [tensor for tensor in every if tensor is not None]


def _buffers(at: Places, capacity: int) -> Places:
    """Room for `capacity` columns of places like these."""
    return Places(*(tensor.new_empty(len(tensor), capacity, *tensor.shape[2:]) for tensor in tensors(at)))


class PromptCache:
    """One row's cache and the ids whose keys it holds, kept between calls: what two prompts share is computed once.

    It belongs to one model with one set of weights and one role; whoever changes these makes a new one.
    """

    def __init__(self, capacity: int) -> None:
        self.dense = DenseCache(capacity)
        self.ids: list[int] = []

    def reuse(self, prompt: Sequence[int]) -> int:
        """Forget all but the beginning shared with `prompt`; how many of its tokens need no computing.

        At least one is left over: the next token is predicted from the last one's output, which is not kept.
        """
        shared = 0
        for old, new in zip(self.ids, prompt[:-1], strict=False):
            if old != new:
                break
            shared += 1
        self.dense.trim(shared)
        shared = min(shared, self.dense.length)
        del self.ids[shared:]
        return shared
