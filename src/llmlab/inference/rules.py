"""What texts of a search may say next, and which of them are at an end: processors, stop tokens, stop texts, a form.

B texts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from torch import Tensor

from llmlab.errors import LlmlabError
from llmlab.inference.constrain import Guide
from llmlab.inference.row import NOT_A_NUMBER, Row, processed, rows_of
from llmlab.inference.sampling import Sampling


class Watch(Protocol):
    """Who looks for stop texts while a text grows; `TextStream` does."""

    @property
    def stopped(self) -> bool: ...
    def push(self, token: int) -> object: ...
    def copy(self) -> Watch: ...


class Rules:
    """`texts` are what the prompts begin with, one a row; `watch` and `guide` have seen nothing yet."""

    def __init__(
        self,
        texts: Sequence[Sequence[int]],
        sampling: Sampling,
        stop_ids: Collection[int],
        watch: Watch | None = None,
        guide: Guide | None = None,
    ) -> None:
        self.sampling, self.stops = sampling, frozenset(stop_ids)
        self._texts, self._guide = texts, guide
        self._rows: list[Row] = []  # made when the first scores tell the vocabulary
        self._watches = None if watch is None else [watch.copy() for _ in texts]

    def process(self, scores_BV: Tensor, each: bool = True) -> Tensor:
        """What the processors make of logits or log-probabilities, float32. Errors: LlmlabError where they are no
        numbers, and, if `each` is asked for, where a text has no token left."""
        if bool(scores_BV.isnan().any()):
            raise LlmlabError(NOT_A_NUMBER)
        if not self._rows:
            self._rows = self._begun(scores_BV)
        allowed_BV, errors = processed(self._rows, scores_BV)
        if errors and each:
            raise LlmlabError(next(iter(errors.values())))
        return allowed_BV

    def _begun(self, scores_BV: Tensor) -> list[Row]:
        seeds, guides = [0] * len(self._texts), [self._copied() for _ in self._texts]
        room = max(map(len, self._texts)) + self.sampling.max_new_tokens
        vocabulary, device = scores_BV.shape[-1], scores_BV.device
        return rows_of(self._texts, self.sampling, seeds, self.stops, room, vocabulary, device, guides)

    def _copied(self) -> Guide | None:
        return None if self._guide is None else self._guide.copy()

    def ends(self, row: int, token: int) -> bool:
        """Whether this text would be at an end with this token."""
        if token in self.stops:
            return True
        guide = self._rows[row].guide
        if guide is not None:
            guide = guide.copy()
            guide.take(token)
            if guide.done:
                return True
        if self._watches is None:
            return False
        watch = self._watches[row].copy()
        watch.push(token)
        return watch.stopped

    def advance(self, ids_B: Sequence[int], parents_B: Sequence[int]) -> None:
        """As `Front.advance`."""
        self._rows = [self._rows[parent].copy() for parent in parents_B]
        for row, token in zip(self._rows, ids_B, strict=True):
            row.take(token)
        if self._watches is not None:
            self._watches = [self._watches[parent].copy() for parent in parents_B]
            for watch, token in zip(self._watches, ids_B, strict=True):
                watch.push(token)
