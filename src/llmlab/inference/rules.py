"""What texts of a search may say next, and which of them are at an end: processors, stop tokens, stop texts.

All texts of a search have the same number of new tokens. B texts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import torch
from torch import Tensor

from llmlab.errors import LlmlabError
from llmlab.inference.sampling import Sampling, process


class Watch(Protocol):
    """Who looks for stop texts while a text grows; `TextStream` does."""

    @property
    def stopped(self) -> bool: ...
    def push(self, token: int) -> object: ...
    def copy(self) -> Watch: ...


class Rules:
    """`texts` are what the prompts begin with, one a row; `watch` has seen nothing yet."""

    def __init__(
        self, texts: Sequence[Sequence[int]], sampling: Sampling, stop_ids: Collection[int], watch: Watch | None = None
    ) -> None:
        self.sampling, self.stops = sampling, frozenset(stop_ids)
        self._texts, self._said = texts, 0
        self._seen_BV: Tensor | None = None
        self._watches = None if watch is None else [watch.copy() for _ in texts]

    def process(self, scores_BV: Tensor) -> Tensor:
        """What the processors make of logits or log-probabilities, float32. Errors: LlmlabError where they are no
        numbers."""
        if bool(scores_BV.isnan().any()):
            raise LlmlabError("the model's output is not a number: its weights or its activations overflowed")
        seen_BV = banned_BV = None
        if self.sampling.repetition_penalty != 1:
            if self._seen_BV is None:
                self._seen_BV = torch.zeros_like(scores_BV, dtype=torch.bool)
                for row, text in enumerate(self._texts):
                    self._seen_BV[row, list(text)] = True
            seen_BV = self._seen_BV
        if self._said < self.sampling.min_new_tokens and self.stops:
            banned_BV = torch.zeros_like(scores_BV, dtype=torch.bool)
            banned_BV[:, sorted(self.stops)] = True
        return process(scores_BV, self.sampling, seen_BV, banned_BV)

    def ends(self, row: int, token: int) -> bool:
        """Whether this text would be at an end with this token."""
        if token in self.stops:
            return True
        if self._watches is None:
            return False
        watch = self._watches[row].copy()
        watch.push(token)
        return watch.stopped

    def advance(self, ids_B: Sequence[int], parents_B: Sequence[int]) -> None:
        """As `Front.advance`."""
        self._said += 1
        if self._seen_BV is not None:
            self._seen_BV = self._seen_BV[list(parents_B)]
            self._seen_BV[torch.arange(len(ids_B)), list(ids_B)] = True
        if self._watches is not None:
            self._watches = [self._watches[parent].copy() for parent in parents_B]
            for watch, token in zip(self._watches, ids_B, strict=True):
                watch.push(token)
