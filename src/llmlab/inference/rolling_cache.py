"""A cache that does not grow: the newest tokens and the first few, for texts without end.

(Xiao et al. 2023, StreamingLLM, arXiv 2309.17453: attention leans on the first tokens, whatever they are, and a model
goes to pieces once they leave the cache; kept as sinks, they let it read on for ever.)

Shapes: B rows, T new tokens, C columns of the buffers, S columns of all keys, G key/value heads, K head width, N tokens
that are kept.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from llmlab.inference.cache import DenseCache, tensors
from llmlab.model.attention import Numbered
from llmlab.model.places import Places

BLOCK = 512  # tokens of a text that may come at once, however full the cache is


class RollingCache(DenseCache):
    """`sinks` first tokens and the `window` newest, each row its own; the oldest of the others is written over.

    Tokens are numbered within the cache, as in the paper: those of the window keep their distances, the sinks stand
    right before the window. Keys are held as they were before their positions turned them, since a number changes while
    its key stays (`model.attention.Renumbering`). Texts are causal: a token's order is its number in the text, and says
    its column too. The sinks have the first ones, the others take turns in those behind. Padding has none.

    A block of several tokens may reach past what the cache holds. Each of them sees a window of its own, whose
    distances are those of the text; from each that is past the window the sinks are as far away as from the last place
    of a full cache. So a block is exact with two numberings, one for the sinks and one for the others, and equal to its
    tokens one at a time. Beside the cache a block's own keys are held, while a layer looks at them.
    """

    def __init__(self, window: int, sinks: int, block: int = BLOCK) -> None:
        super().__init__(window + sinks)
        self.window, self.sinks, self.block = window, sinks, block
        self._writing = _Writing.nothing()

    def room(self) -> int:
        return max(super().room(), self.block)

    def extend(self, at: Places) -> Places:
        """The places of all keys, as the text has them: those of the buffers, with the new ones written where each
        token finds all that it sees in them; else the sinks, the others, and behind these the new ones."""
        new, old = at.order.shape[1], self.length
        if self._places is None:
            self._places = Places(*(x.new_zeros(len(x), self.capacity, *x.shape[2:]) for x in tensors(at)))
        self.length = min(self.capacity, old + new)
        fresh = slice(old, self.length)
        for buffer, blank in zip(tensors(self._places), (0, 0, -1, 0), strict=False):
            buffer[:, fresh] = blank
        self._writing = self._kept(at, fresh, apart=new > 1 and old + new > self.capacity)
        beside = at
        if self._writing.apart:  # the sinks are seen where they are kept
            document = at.document.masked_fill(at.real & (at.order < self.sinks), _NOBODY)
            beside = replace(at, document=document)
        seen = [
            self._seen(buffer, new_values, beside_values)
            for buffer, new_values, beside_values in zip(
                tensors(self._places), tensors(at), tensors(beside), strict=True
            )
        ]
        return Places(*seen)

    def numbered(self, at: Places, keys: Places) -> list[Numbered]:
        """One run where all sees of these places by one numbering; else the sinks, then the others."""
        last = self.capacity - 1
        behind_BT = (at.order - last).clamp(min=0)  # how far a number within the cache lies behind the text's
        within = self._counted(at, at.order - behind_BT)
        if not self._writing.apart:
            behind_B1 = behind_BT.amax(1, keepdim=True)
            number = keys.order - torch.where(keys.order < self.sinks, 0, behind_B1)
            return [Numbered(slice(0, None), within, self._counted(keys, number))]
        # The numbers of a row's window go on from its first token, so that they stay small in any text.
        first_B1 = behind_BT.masked_fill(~at.real, torch.iinfo(torch.int64).max).amin(1, keepdim=True)
        first_B1 = first_B1.masked_fill(~at.real.any(1, keepdim=True), 0)
        sinks, others = slice(0, self.sinks), slice(self.sinks, None)
        ahead = self._counted(at, (at.order - first_B1).clamp(min=0))
        near, far = keys[:, others], keys[:, sinks]
        runs = [Numbered(others, ahead, self._counted(near, (near.order - first_B1).clamp(min=0)))]
        return [Numbered(sinks, within, self._counted(far, far.order)), *runs] if self.sinks else runs

    def _counted(self, at: Places, number: Tensor) -> Places:
        return replace(at, position=number, held=self.capacity)

    def _kept(self, at: Places, fresh: slice, apart: bool) -> _Writing:
        """Which of the new tokens are kept, and where: the sinks, and the newest of the others."""
        order, sinks = at.order, self.sinks
        newest_B1 = order.masked_fill(~at.real, -1).amax(1, keepdim=True)
        kept_BT = at.real & ((order < sinks) | (order > newest_B1 - self.window))
        rows_N, tokens_N = kept_BT.nonzero(as_tuple=True)
        order_N = order[rows_N, tokens_N]
        columns_N = torch.where(order_N < sinks, order_N, sinks + (order_N - sinks) % self.window)
        return _Writing(rows_N, tokens_N, columns_N, fresh, apart)

    def _seen(self, buffer_BC: Tensor, new_BT: Tensor, beside_BT: Tensor) -> Tensor:
        """Write new values [B, T, ...] into a buffer [B, C, ...]; the values of all that is seen, [B, S, ...]."""
        writing = self._writing
        at, of = (writing.rows, writing.columns), (writing.rows, writing.tokens)
        if not writing.apart:
            buffer_BC[at] = new_BT[of]
            return buffer_BC[:, : self.length]
        others = buffer_BC[:, self.sinks : max(self.sinks, writing.fresh.start)]
        seen = torch.cat([buffer_BC[:, : self.sinks], others, beside_BT], 1)
        buffer_BC[at] = new_BT[of]
        seen[:, : self.sinks] = buffer_BC[:, : self.sinks]
        return seen

    def trim(self, length: int) -> None:
        """Forget what came last. A full cache no longer holds what came before it: all is forgotten."""
        super().trim(0 if length < self.length == self.capacity else length)

    def _put(self, buffers: dict[int, Tensor], layer: int, new_BGTK: Tensor) -> Tensor:
        rows, heads, _, width = new_BGTK.shape
        if layer not in buffers:
            buffers[layer] = new_BGTK.new_empty(rows, heads, self.capacity, width)
        buffer = buffers[layer]
        buffer[:, :, self._writing.fresh] = 0  # unseen keys have weight 0, and 0 times what lay there may be no number
        new_BTGK = new_BGTK.transpose(1, 2)
        return self._seen(buffer.transpose(1, 2), new_BTGK, new_BTGK).transpose(1, 2)


_NOBODY = -3  # a document that no token is of: neither padding nor `places.EVERY`


class _Writing(NamedTuple):
    """What becomes of the tokens of one pass: token `tokens[n]` of row `rows[n]` goes to column `columns[n]`. `fresh`
    are the columns that are used for the first time; `apart`: whether new keys are seen beside the buffers."""

    rows: Tensor
    tokens: Tensor
    columns: Tensor
    fresh: slice
    apart: bool

    @staticmethod
    def nothing() -> _Writing:
        none = torch.empty(0, dtype=torch.int64)
        return _Writing(none, none, none, slice(0, 0), False)
