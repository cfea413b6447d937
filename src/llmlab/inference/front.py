"""Texts that grow together by one token each, and may change places or fork: all that a search asks of a model.

A search says which texts go on, from which text of the step before, and by which token; what is kept of them between
steps is no business of its.

B texts, T new tokens, V vocabulary, D width.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from llmlab.errors import InputError
from llmlab.inference.answering import Answering
from llmlab.inference.cache import RowCache
from llmlab.inference.caches import CacheKind, Dense
from llmlab.inference.engine import Decoder, read, require_continuing, without_dropout
from llmlab.inference.row import room_left
from llmlab.model.linear import Role
from llmlab.model.places import Places
from llmlab.model.transformer import Transformer


class Seen(NamedTuple):
    """After a step: the logits [B, V] of each text's next token, the hidden states [B, T, D] of its new tokens (all of
    the prompt at the start), and which of these are real, bool [B, T]."""

    logits_BV: Tensor
    hidden_BTD: Tensor
    real_BT: Tensor


class Front(Protocol):
    def texts(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        """What each text begins with: its prompt, or, where an encoder reads that, the decoder's start token."""

    def limits(self, texts: Sequence[Sequence[int]], new: int) -> list[int]:
        """How many of `new` tokens each of these beginnings has room for, one at least. Errors: InputError for a
        prompt that is empty or leaves no room."""

    def start(self, prompts: Sequence[Sequence[int]], new: int) -> Seen:
        """Read the prompts; `new` tokens of each will follow at most."""

    def advance(self, ids_B: Sequence[int], parents_B: Sequence[int]) -> Seen:
        """Text i is from now on what was text `parents_B[i]`, followed by the token `ids_B[i]`."""


class DecoderFront:
    """A front over any `Decoder`, encoder-decoders included, with a cache of any kind. A tuple of roles: one a prompt.

    The model runs without dropout and without gradients.
    """

    def __init__(self, model: Decoder, cache: CacheKind | None = None, role: Role = None) -> None:
        require_continuing(model.architecture)
        self._model, self._kind, self._role = model, cache or Dense(), role

    def texts(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        a = self._model.architecture
        return [[Answering.start_id(a)] if a.encoder_layers else list(prompt) for prompt in prompts]

    def limits(self, texts: Sequence[Sequence[int]], new: int) -> list[int]:
        context = self._model.architecture.context
        if self._kind.endless:
            context = max(context, new + max(map(len, texts)))
        return [min(new, left) for left in room_left(texts, context)]

    @torch.inference_mode()
    def start(self, prompts: Sequence[Sequence[int]], new: int) -> Seen:
        model, texts = self._model, self.texts(prompts)
        columns = max(map(len, texts)) + max(self.limits(texts, new))
        self._cache: RowCache = self._kind.build(columns, model.architecture)
        self._of = list(range(len(prompts)))  # which prompt each text goes on from
        self._running = model
        with without_dropout(model):
            if model.architecture.encoder_layers:
                if not isinstance(model, Transformer):
                    problem, hint = "an encoder is not built for models of several roles", "use 0"
                    raise InputError("model.encoder_layers", problem, hint)
                self._running = Answering.to(model, prompts, self._role)
            pieces = list(read(self._running, texts, self._cache, self._role))
            hidden_BTD = torch.cat([hidden for hidden, _ in pieces], 1)
            real_BT = torch.cat([at.real for _, at in pieces], 1)
            self._at: Places = pieces[-1][1][:, -1:]
            return Seen(model.logits(hidden_BTD[:, -1]), hidden_BTD, real_BT)

    @torch.inference_mode()
    def advance(self, ids_B: Sequence[int], parents_B: Sequence[int]) -> Seen:
        self._move(list(parents_B))
        self._at = self._model.architecture.mask.after(self._at)
        ids_B1 = torch.tensor(ids_B, device=self._at.order.device)[:, None]
        role = self._role
        if isinstance(role, tuple):
            role = tuple(role[prompt] for prompt in self._of)
        with without_dropout(self._model):
            hidden_B1D = self._running.hidden(ids_B1, self._at, self._cache, role)
            return Seen(self._model.logits(hidden_B1D[:, -1]), hidden_B1D, torch.ones_like(ids_B1, dtype=torch.bool))

    def _move(self, parents: list[int]) -> None:
        self._cache.keep_rows(parents)
        self._at = self._at[parents]
        before, self._of = self._of, [self._of[parent] for parent in parents]
        if isinstance(self._running, Answering) and self._of != before:  # else each finds its own prompt already
            self._running.keep_rows(parents)


class TimedFront:
    """A front that notes how long its start took, for reports."""

    def __init__(self, front: Front) -> None:
        self._front, self.start_seconds = front, 0.0
        self.texts, self.limits, self.advance = front.texts, front.limits, front.advance

    def start(self, prompts: Sequence[Sequence[int]], new: int) -> Seen:
        began = time.perf_counter()
        seen = self._front.start(prompts, new)
        self.start_seconds = time.perf_counter() - began
        return seen
