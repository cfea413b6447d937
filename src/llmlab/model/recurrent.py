"""Recurrent nets in attention's place: what came before is one state, not a list of keys.

B rows, T tokens, D width, R runs (a document's tokens in a row).
"""

from __future__ import annotations

from abc import ABC
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from llmlab.model.attention import Held, Mixer, MixerPart, Sight, in_order
from llmlab.model.linear import Linear
from llmlab.model.norms import LayerNorm, RMSNorm


class _Recurrent(MixerPart, ABC):
    net: ClassVar[Any]  # the module of torch
    states: ClassVar[int] = 1  # vectors that it carries on
    heads: ClassVar[int] = 1
    hidden: int | None = Field(None, gt=0, description="width of the state; null: dim")

    @property
    def scores(self) -> bool:
        return False

    def width(self, dim: int) -> int:
        return dim

    def held(self, dim: int) -> Held:
        return Held(state=self.states * (self.hidden or dim))

    def build(self, dim: int, norm: LayerNorm | RMSNorm) -> Recurrent:
        return Recurrent(self.net(dim, self.hidden or dim, batch_first=True), dim)


class RNN(_Recurrent):
    """h' = tanh(W x + U h) (Elman 1990; Mikolov et al. 2010)."""

    kind: Literal["rnn"] = "rnn"
    net: ClassVar[Any] = nn.RNN


class LSTM(_Recurrent):
    """Input, forget and output gates around a cell (Hochreiter & Schmidhuber 1997; Gers et al. 2000)."""

    kind: Literal["lstm"] = "lstm"
    net: ClassVar[Any] = nn.LSTM
    states: ClassVar[int] = 2  # the output and the cell


class GRU(_Recurrent):
    """Reset and update gates (Cho et al. 2014, arXiv 1406.1078)."""

    kind: Literal["gru"] = "gru"
    net: ClassVar[Any] = nn.GRU


class Recurrent(Mixer):
    """The net, run over each document from its own start, then an output projection.

    Documents of a row become rows of their own, so that one call of the net reads them all. In a cache it leaves its
    states, each [B, hidden], and the document [B] that they are of.
    """

    def __init__(self, net: nn.RNNBase, dim: int) -> None:
        super().__init__()
        self.net = net
        self.output = Linear(net.hidden_size, dim, bias=False)

    def forward(self, x_BTD: Tensor, sight: Sight, layer: int) -> Tensor:
        document_BT = in_order(sight.at, "a recurrent net")
        real_BT = document_BT >= 0
        row_N, column_N = real_BT.nonzero(as_tuple=True)
        if not len(row_N):
            nothing: Tensor = self.output(x_BTD.new_zeros(*x_BTD.shape[:2], self.net.hidden_size), sight.role)
            return nothing
        owner_N = document_BT[row_N, column_N]
        fresh_N = torch.ones_like(row_N, dtype=torch.bool)
        fresh_N[1:] = (row_N[1:] != row_N[:-1]) | (owner_N[1:] != owner_N[:-1])
        run_N, first_R = fresh_N.cumsum(0) - 1, fresh_N.nonzero()[:, 0]
        step_N = torch.arange(len(row_N), device=row_N.device) - first_R[run_N]
        length_R, row_R, owner_R = run_N.bincount(), row_N[first_R], owner_N[first_R]
        runs = x_BTD.new_zeros(len(first_R), int(length_R.max()), x_BTD.shape[2])
        runs[run_N, step_N] = x_BTD[row_N, column_N]
        held = None if sight.cache is None else sight.cache.recall(layer)
        start = None if held is None else self._start(held, row_R, owner_R)
        packed = pack_padded_sequence(runs, length_R.cpu(), batch_first=True, enforce_sorted=False)
        read, end = self.net(packed, start)
        read_RSD = pad_packed_sequence(read, batch_first=True)[0]
        y_BTD = read_RSD.new_zeros(*x_BTD.shape[:2], self.net.hidden_size)  # under autocast another dtype than x
        y_BTD[row_N, column_N] = read_RSD[run_N, step_N]
        if sight.cache is not None:
            sight.cache.remember(layer, self._left(held, end, row_R, owner_R, len(x_BTD)))
        y: Tensor = self.output(y_BTD, sight.role)
        return y

    def _start(self, held: tuple[Tensor, ...], row_R: Tensor, owner_R: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The states [1, R, hidden] that runs begin with: of their row, if that is the same document, else zero."""
        *states, document_B = held
        goes_on_R1 = (document_B[row_R] == owner_R)[:, None]
        begun = tuple((state[row_R] * goes_on_R1)[None] for state in states)
        return begun if len(begun) > 1 else begun[0]

    def _left(
        self,
        held: tuple[Tensor, ...] | None,
        end: Tensor | tuple[Tensor, ...],
        row_R: Tensor,
        owner_R: Tensor,
        rows: int,
    ) -> tuple[Tensor, ...]:
        """Each row's states after its last run; a row that only had padding keeps what it had."""
        ends = end if isinstance(end, tuple) else (end,)
        *states, document_B = held or (*(e.new_zeros(rows, e.shape[2]) for e in ends), owner_R.new_full((rows,), -1))
        last_R = torch.ones_like(row_R, dtype=torch.bool)
        last_R[:-1] = row_R[:-1] != row_R[1:]
        where = row_R[last_R]
        after = tuple(
            state.index_copy(0, where, e[0, last_R].to(state.dtype)) for state, e in zip(states, ends, strict=True)
        )
        return *after, document_B.index_copy(0, where, owner_R[last_R])
