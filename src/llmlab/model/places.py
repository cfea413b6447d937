"""Places: where each token stands, and the one mask rule that follows from it.

    query i sees key j  iff  document_i == document_j  (or j is of every document)
                        and  order_j <= order_i            (<, for the query stream of permutation models)
                        and  (no window, or order_i - order_j < window, or order_j < sinks)

Causal is order 0, 1, 2, ...; bidirectional is order 0 everywhere; a prefix is order max(0, i - P + 1), of
none causal; a permutation is each token's rank; blank infilling is 0, then rank; padding is document -1; packing is
several documents in one row. Cross-attention asks for the document only. Padding, packing, caches and windows need no
special case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

EVERY = -2  # the document of keys that all documents see: virtual tokens, which stand before each text of a packed row
FAR = -(1 << 30)  # their order: before all others, and below `sinks`, so that no window forgets them


@dataclass(frozen=True)
class Places:
    """Three int64 tensors [B, T]: `position` for the encoding ([B, T, 2] where it counts two axes), `order` and
    `document` for the mask rule. `segment` [B, T] says which text of a pair a token belongs to, where that is known.
    `held` is how many tokens of a text are in reach at most, where a cache forgets."""

    position: Tensor
    order: Tensor
    document: Tensor
    segment: Tensor | None = None
    held: int | None = field(default=None, kw_only=True)

    @staticmethod
    def causal(rows: int, length: int, device: torch.device | None = None, start: int = 0) -> Places:
        """One document a row, positions from `start`, each token sees itself and what came before."""
        line = torch.arange(start, start + length, device=device).expand(rows, length)
        return Places(line, line, torch.zeros_like(line))

    @staticmethod
    def of_lengths(
        lengths: Sequence[int], width: int, side: str = "right", device: torch.device | None = None
    ) -> Places:
        """Causal rows of these lengths, padded on `side` to `width`. Positions count real tokens only."""
        if side not in ("left", "right"):
            raise ValueError(f"side is left or right, not {side!r}")
        size = torch.tensor(lengths, device=device)[:, None]
        line = torch.arange(width, device=device)[None]
        position = line if side == "right" else line - (width - size)
        real = (position >= 0) & (position < size)
        return Places.in_order(torch.where(real, position, 0), torch.where(real, 0, -1))

    @staticmethod
    def in_order(position: Tensor, document: Tensor) -> Places:
        """Each token sees itself and what came before in its document. So does padding, a text like any other in the
        order of its columns: no row has a token that sees what comes after it, and causal kernels take all rows."""
        columns = torch.arange(position.shape[1], device=position.device)
        return Places(position, torch.where(document < 0, columns, position), document)

    def bidirectional(self) -> Places:
        """The same places where every token of a document sees every other."""
        return Places(self.position, torch.zeros_like(self.order), self.document, self.segment)

    def prefix(self, lengths: Sequence[int] | Tensor) -> Places:
        """The same causal places where the first `lengths[row]` tokens of each document see one another."""
        size = torch.as_tensor(lengths, device=self.order.device).view(-1, 1)
        order = (self.order - (size - 1).clamp(min=0)).clamp(min=0)  # of none it is causal to the last number
        return Places(self.position, order, self.document, self.segment)

    def sees(self, keys: Places, window: int | None = None, sinks: int = 0, strict: bool = False) -> Tensor:
        """The mask rule: bool [B, T, S], true where query i of self sees key j of `keys`."""
        distance = self.order[:, :, None] - keys.order[:, None, :]
        mask = self.shares_document(keys) & (distance >= int(strict))
        if window is None:
            return mask
        return mask & ((distance < window) | (keys.order[:, None, :] < sinks))

    def shares_document(self, keys: Places) -> Tensor:
        """bool [B, T, S]: the rule of cross-attention."""
        same = self.document[:, :, None] == keys.document[:, None, :]
        return same | (keys.document == EVERY)[:, None, :]

    def cat(self, later: Places) -> Places:
        """These columns, then the columns of `later`."""
        segment = None
        if self.segment is not None or later.segment is not None:
            segment = torch.cat([self.segments, later.segments], 1)
        return Places(
            torch.cat([self.position, later.position], 1),
            torch.cat([self.order, later.order], 1),
            torch.cat([self.document, later.document], 1),
            segment,
        )

    def __getitem__(self, index: Any) -> Places:
        """Index rows and columns as in a tensor [B, T]."""
        segment = None if self.segment is None else self.segment[index]
        return Places(self.position[index], self.order[index], self.document[index], segment, held=self.held)

    def to(self, device: torch.device) -> Places:
        segment = None if self.segment is None else self.segment.to(device)
        return Places(self.position.to(device), self.order.to(device), self.document.to(device), segment)

    @property
    def length(self) -> Tensor:
        """int64, as `position`: how many tokens of its text there are up to each, of those in reach."""
        return self.position + 1 if self.held is None else (self.position + 1).clamp(max=self.held)

    @property
    def segments(self) -> Tensor:
        """int64 [B, T]: 0 where nothing else is known."""
        return torch.zeros_like(self.order) if self.segment is None else self.segment

    @property
    def real(self) -> Tensor:
        """bool [B, T]: false on padding."""
        return self.document >= 0
