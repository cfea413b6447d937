"""Guesses at the next tokens of a text, which the model reads in one step and keeps as far as it would have said them
itself (Leviathan et al. 2023, arXiv 2211.17192).

Every token is drawn from the model's own logits with the noise of its own place, as it would be without guesses; so a
guess costs or saves time and changes no byte. A draft model that draws with the same noise says the same token
wherever its distribution is near enough, at any temperature.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from llmlab.inference.pages import PAGE, Pages
from llmlab.inference.sampling import Sampling, choose, process
from llmlab.inference.stepper import Piece, Stepper
from llmlab.recipe import KINDS, Section
from llmlab.runtime import threads

STEP_TOKENS = 256  # of a draft model's reading


class Lookup(Section):
    """Guesses from the text itself: what followed when its last tokens stood there before."""

    kind: Literal["lookup"] = "lookup"
    tokens: int = Field(8, gt=0, le=64, description="most guesses a step")
    ngram: int = Field(3, gt=0, le=16, description="the longest run of last tokens that is looked for")


class Drafted(Section):
    """Guesses from another model of the same vocabulary, smaller or in coarser weights."""

    kind: Literal["draft"] = "draft"
    model: str = Field(description="the draft model: a name, a folder or a file, as the model itself")
    weights: str = Field("auto", description="its weights: auto, fp32, bf16, int8 or int4")
    tokens: int = Field(4, gt=0, le=64, description="most guesses a step")


Speculation = Annotated[Lookup | Drafted, *KINDS]


@dataclass(frozen=True)
class Known:
    """What a guesser is told of a text: its number, its ids so far, how many guesses are of use, and how it draws."""

    number: int
    ids: Sequence[int]
    most: int
    sampling: Sampling
    key: int


class Guesser(ABC):
    """Where guesses come from; `tokens` is how many at most."""

    tokens: int

    @abstractmethod
    def guess(self, texts: Sequence[Known]) -> list[list[int]]:
        """For each text the ids that may come next, at most `most` of them, perhaps none."""

    def forget(self, number: int) -> None:
        """A text is over."""
        return


class PromptLookup(Guesser):
    """What followed the last time that the text's last tokens were seen in it (Saxena 2023, prompt lookup decoding):
    quotations, code and tables repeat themselves. The longest run of `ngram` tokens or fewer that is found counts."""

    def __init__(self, tokens: int = 8, ngram: int = 3) -> None:
        self.tokens, self.ngram = tokens, ngram

    def guess(self, texts: Sequence[Known]) -> list[list[int]]:
        return [self._one(text) for text in texts]

    def _one(self, text: Known) -> list[int]:
        ids = np.fromiter(text.ids, np.int64, len(text.ids))
        for size in range(min(self.ngram, len(ids) - 1), 0, -1):
            same = np.ones(len(ids) - size, dtype=bool)  # where a run of `size` begins that is not the last one
            for at in range(size):
                same &= ids[at : len(ids) - size + at] == ids[len(ids) - size + at]
            found = np.flatnonzero(same)
            if len(found):
                after = int(found[-1]) + size
                return [int(id) for id in ids[after : after + text.most]]
        return []


@dataclass
class _Held:
    """A text in the draft model: the ids whose keys it holds, how many are the text's for certain, and where."""

    ids: list[int] = field(default_factory=list)
    sure: int = 0
    pages: list[int] = field(default_factory=list)


class Draft(Guesser):
    """A smaller or coarser model of the same vocabulary goes on by itself, all texts at once. Its table may have more
    or fewer rows that no token has than the `vocabulary` of the model it guesses for (None: as many)."""

    def __init__(self, model: Stepper, tokens: int = 4, vocabulary: int | None = None) -> None:
        self.model, self.tokens = model, tokens
        self._vocabulary = model.vocab_size if vocabulary is None else vocabulary
        self._pages = Pages(model.pages)
        self._texts: dict[int, _Held] = {}

    def guess(self, texts: Sequence[Known]) -> list[list[int]]:
        guesses: list[list[int]] = [[] for _ in texts]
        going = [row for row, text in enumerate(texts) if self._read(text)]
        while going:
            pieces, rows = [], []
            for row in going:
                text, held = texts[row], self._texts[texts[row].number]
                if not self._grow(held, len(held.ids) + 1):
                    continue
                last = guesses[row][-1] if guesses[row] else text.ids[-1]
                pieces.append(Piece([last], len(held.ids), held.pages))
                held.ids.append(last)
                rows.append(row)
            if not rows:
                break
            logits_RV = self.model.step(pieces, range(len(rows)))
            going = []
            for slot, row in enumerate(rows):
                text, place = texts[row], len(texts[row].ids) + len(guesses[row])
                with threads(1):  # others would go on spinning while the model steps (see `Batching`)
                    processed_1V = process(logits_RV[slot : slot + 1, : self._vocabulary], _plain(text.sampling))
                    drawn = choose(processed_1V, text.sampling.greedy, [text.key], [place])
                guesses[row].append(int(drawn.ids_B))
                if len(guesses[row]) < text.most:
                    going.append(row)
        return guesses

    def forget(self, number: int) -> None:
        if (held := self._texts.pop(number, None)) is not None:
            self._pages.give_back(held.pages)

    def _read(self, text: Known) -> bool:
        """Take back what was guessed wrongly and read all but the text's last token; whether a guess is of use."""
        if text.most < 1 or len(text.ids) + text.most > self.model.architecture.context:
            return False
        if text.ids[-1] >= self.model.vocab_size:
            return False
        held = self._texts.setdefault(text.number, _Held())
        kept, last = held.sure, len(text.ids) - 1
        while kept < min(len(held.ids), last) and held.ids[kept] == text.ids[kept]:
            kept += 1
        del held.ids[kept:]
        while len(held.ids) < last:
            ids = list(text.ids[len(held.ids) : min(last, len(held.ids) + STEP_TOKENS)])
            if max(ids) >= self.model.vocab_size or not self._grow(held, len(held.ids) + len(ids)):
                self.forget(text.number)
                return False
            self.model.step([Piece(ids, len(held.ids), held.pages)], [])
            held.ids += ids
        held.sure = last
        return True

    def _grow(self, held: _Held, length: int) -> bool:
        while len(held.pages) * PAGE < length:
            page = self._pages.take()
            if page is None:
                return False
            held.pages.append(page)
        return True


def _plain(sampling: Sampling) -> Sampling:
    """The part of a sampling that needs no knowledge of what was said."""
    return Sampling(temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p)
