"""A front whose texts lie in pages: searches by the native step. Texts that fork share what they have in common, full
pages by count and the page that is being written by a copy.

B texts, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from llmlab.errors import LlmlabError
from llmlab.inference.front import Seen
from llmlab.inference.pages import PAGE, Pages
from llmlab.inference.row import room_left
from llmlab.inference.stepper import Piece, Stepper

STEP_TOKENS = 256  # of reading a prompt


class PagedFront:
    """A `Front` over a stepper and its pool of pages, whose other users keep what they hold. It tells no hidden states:
    a search that asks for them takes another front. Use it in `with front.held():`, which gives the pages back."""

    def __init__(self, model: Stepper, pages: Pages) -> None:
        self._model, self._pages = model, pages
        self._texts: list[_Text] = []

    @contextmanager
    def held(self) -> Iterator[PagedFront]:
        try:
            yield self
        finally:
            for text in self._texts:
                self._pages.give_back(text.pages)
            self._texts = []

    def texts(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        return [list(prompt) for prompt in prompts]

    def limits(self, texts: Sequence[Sequence[int]], new: int) -> list[int]:
        context = min(self._model.architecture.context, self._model.pages * PAGE)
        return [min(new, left) for left in room_left(texts, context)]

    @torch.inference_mode()
    def start(self, prompts: Sequence[Sequence[int]], new: int) -> Seen:
        self._texts = [_Text([], 0) for _ in prompts]
        return self._seen([self._read(text, prompt) for text, prompt in zip(self._texts, prompts, strict=True)])

    @torch.inference_mode()
    def advance(self, ids_B: Sequence[int], parents_B: Sequence[int]) -> Seen:
        before, heirs = self._texts, Counter(parents_B)
        for row, text in enumerate(before):
            if not heirs[row]:
                self._pages.give_back(text.pages)
        self._texts, taken = [], set[int]()
        for parent in parents_B:
            self._texts.append(before[parent] if parent not in taken else self._fork(before[parent]))
            taken.add(parent)
        pieces = []
        for id, text in zip(ids_B, self._texts, strict=True):
            self._grow(text, text.length + 1)
            pieces.append(Piece([id], text.length, text.pages))
        logits_BV = self._model.step(pieces, range(len(pieces)))
        for text in self._texts:
            text.length += 1
        return self._seen([logits_BV])

    def _read(self, text: _Text, prompt: Sequence[int]) -> Tensor:
        """The logits [1, V] after a prompt."""
        text.pages = self._pages.share(prompt)
        for start in range(len(text.pages) * PAGE, len(prompt), STEP_TOKENS):
            ids = list(prompt[start : start + STEP_TOKENS])
            self._grow(text, start + len(ids))
            last = start + len(ids) == len(prompt)
            logits = self._model.step([Piece(ids, start, text.pages)], [len(ids) - 1] if last else [])
        text.length = len(prompt)
        return logits

    def _fork(self, text: _Text) -> _Text:
        whole = text.length // PAGE
        fork = _Text(self._pages.use(text.pages[:whole]), text.length)
        if text.length % PAGE:
            self._grow(fork, text.length)
            self._model.copy(text.pages[whole], fork.pages[whole])
        return fork

    def _grow(self, text: _Text, length: int) -> None:
        while len(text.pages) * PAGE < length:
            page = self._pages.take()
            if page is None:
                problem = f"more texts at once than {self._model.pages * PAGE} tokens of room hold"
                raise LlmlabError(f"search: {problem} (fewer beams, or a shorter text)")
            self._model.clear(page)
            text.pages.append(page)

    def _seen(self, logits: Sequence[Tensor]) -> Seen:
        logits_BV = torch.cat(list(logits))
        return Seen(logits_BV, logits_BV.new_empty(len(logits_BV), 1, 0), torch.ones(len(logits_BV), 1).bool())


class _Text:
    """The pages of one text, and how many of its tokens lie there."""

    def __init__(self, pages: list[int], length: int) -> None:
        self.pages, self.length = pages, length
