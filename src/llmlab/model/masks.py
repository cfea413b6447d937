"""Masks: who sees whom when nothing but ids is given. What a batch or a cache says in `Places` goes before."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from llmlab.errors import InputError
from llmlab.model.places import Places
from llmlab.recipe import KINDS, Section


class _Mask(Section, ABC):
    @abstractmethod
    def places(self, ids_BT: Tensor) -> Places:
        """Where each token of rows without padding stands."""

    def prompted(self, ids_BT: Tensor) -> Tensor:
        """The same ids with the tokens put in that this mask asks for, so that any ids may be tried."""
        return ids_BT

    @property
    def one_way(self) -> bool:
        """Whether what was read does not change with what comes, so that a cache and generation make sense."""
        return True

    @property
    def reads_whole(self) -> bool:
        """Whether a prompt's tokens see what comes after them in it, so that it must be read at once."""
        return False

    def prompt(self, causal: Places, lengths: Sequence[int]) -> Places:
        """Where the tokens of prompts of these lengths stand, given where they would stand under the causal mask."""
        return causal

    def after(self, last: Places) -> Places:
        """Where the token after the last column of `last` stands, [B, 1]."""
        end = last[:, -1:]
        return Places(end.position + 1, end.order + 1, end.document, end.segment)


class Causal(_Mask):
    """Each token sees itself and what came before (Radford et al. 2018, GPT)."""

    kind: Literal["causal"] = "causal"

    def places(self, ids_BT: Tensor) -> Places:
        return _line(ids_BT)


class Bidirectional(_Mask):
    """Every token sees every other (Devlin et al. 2018, BERT, arXiv 1810.04805)."""

    kind: Literal["bidirectional"] = "bidirectional"

    @property
    def one_way(self) -> bool:
        return False

    def places(self, ids_BT: Tensor) -> Places:
        return _line(ids_BT).bidirectional()


class Prefix(_Mask):
    """The first tokens see one another, the others what came before (Dong et al. 2019, UniLM, arXiv 1905.03197).

    In generation the prompt is the prefix.
    """

    kind: Literal["prefix"] = "prefix"
    length: int = Field(0, ge=0, description="tokens of the prefix where nothing else says it; 0 is causal")

    @property
    def reads_whole(self) -> bool:
        return True

    def prompt(self, causal: Places, lengths: Sequence[int]) -> Places:
        return causal.prefix(lengths)

    def places(self, ids_BT: Tensor) -> Places:
        causal = _line(ids_BT)
        return causal.prefix([self.length] * len(ids_BT))


class Blank(_Mask):
    """ChatGLM-6B: what stands before the start token sees itself whole; what comes after fills the blank, and counts
    on a second axis while the first stands still at the blank (Du et al. 2021, GLM, arXiv 2103.10360)."""

    kind: Literal["blank"] = "blank"
    start_id: int = Field(ge=0, description="the token that starts the filling")
    blank_ids: tuple[int, ...] = Field(min_length=1, description="tokens that mark a blank, the one looked for first")

    def places(self, ids_BT: Tensor) -> Places:
        line = torch.arange(ids_BT.shape[1], device=ids_BT.device).expand(ids_BT.shape)
        start_B1 = self._first(ids_BT, (self.start_id,), "start token")
        blank_B1 = torch.stack([_where(ids_BT, id, ids_BT.shape[1]) for id in self.blank_ids])
        found = (blank_B1 < ids_BT.shape[1]).int().argmax(0, keepdim=True)  # the first kind of blank that is there
        blank_B1 = blank_B1.gather(0, found)[0]
        if int(blank_B1.max()) >= ids_BT.shape[1]:
            raise InputError("ids", "hold no blank", f"one of {list(self.blank_ids)} marks it")
        after = line >= start_B1
        position = torch.stack([torch.where(after, blank_B1, line), (line - start_B1 + 1).clamp(min=0)], -1)
        return Places(position, (line - start_B1 + 1).clamp(min=0), torch.zeros_like(line))

    def prompted(self, ids_BT: Tensor) -> Tensor:
        start = max(1, ids_BT.shape[1] // 2)
        special = torch.tensor([self.start_id, *self.blank_ids], device=ids_BT.device)
        taken = torch.isin(ids_BT, special)
        plain = next(id for id in range(len(special) + 1) if id not in special.tolist())
        ids_BT = ids_BT.masked_fill(taken, plain)
        ids_BT[:, start - 1], ids_BT[:, start] = self.blank_ids[0], self.start_id
        return ids_BT

    def _first(self, ids_BT: Tensor, ids: tuple[int, ...], name: str) -> Tensor:
        where_B1 = _where(ids_BT, ids[0], ids_BT.shape[1])
        if int(where_B1.max()) >= ids_BT.shape[1]:
            raise InputError("ids", f"hold no {name} {ids[0]}", "a prompt of this model ends with a blank and a start")
        return where_B1

    def after(self, last: Places) -> Places:
        end = last[:, -1:]
        step = torch.tensor([0, 1], device=end.position.device)
        return Places(end.position + step, end.order + 1, end.document, end.segment)


def _line(ids_BT: Tensor) -> Places:
    rows, length = ids_BT.shape
    return Places.causal(rows, length, ids_BT.device)


def _where(ids_BT: Tensor, id: int, missing: int) -> Tensor:
    """int64 [B, 1]: the first column that holds `id`, or `missing`."""
    hit = ids_BT == id
    return torch.where(hit.any(1, keepdim=True), hit.int().argmax(1, keepdim=True), missing)


Mask = Annotated[Causal | Bidirectional | Prefix | Blank, *KINDS]
