"""Places: where each token stands, and the one mask rule that follows from it.

    query i sees key j  iff  document_i == document_j
                        and  order_j <= order_i
                        and  (no window, or order_i - order_j < window)

Causal is order 0, 1, 2, ...; bidirectional is order 0 everywhere; a prefix is order max(0, i - P + 1); padding is
document -1; packing is several documents in one row. Padding, packing, caches and windows need no special case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Places:
    """Three int64 tensors [B, T]: `position` for the encoding, `order` and `document` for the mask rule."""

    position: Tensor
    order: Tensor
    document: Tensor

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
        position = torch.where(real, position, 0)
        return Places(position, torch.where(real, position, 0), torch.where(real, 0, -1))

    def sees(self, keys: Places, window: int | None = None) -> Tensor:
        """The mask rule: bool [B, T, S], true where query i of self sees key j of `keys`."""
        distance = self.order[:, :, None] - keys.order[:, None, :]
        mask = (self.document[:, :, None] == keys.document[:, None, :]) & (distance >= 0)
        return mask if window is None else mask & (distance < window)

    def cat(self, later: Places) -> Places:
        """These columns, then the columns of `later`."""
        return Places(
            torch.cat([self.position, later.position], 1),
            torch.cat([self.order, later.order], 1),
            torch.cat([self.document, later.document], 1),
        )

    def __getitem__(self, index: Any) -> Places:
        """Index rows and columns as in a tensor [B, T]."""
        return Places(self.position[index], self.order[index], self.document[index])

    def to(self, device: torch.device) -> Places:
        return Places(self.position.to(device), self.order.to(device), self.document.to(device))

    @property
    def real(self) -> Tensor:
        """bool [B, T]: false on padding."""
        return self.document >= 0
