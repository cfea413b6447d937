"""Sentences that say again what an earlier one of the same text has said, taken out once the text is written.

A remedy after the fact: it makes a text shorter and no model better. Two rules. By words, without a model: most of a
sentence's runs of words stand in one earlier sentence (exact and nearly exact repeats). By meaning, where the caller
gives an encoder: its cosine with an earlier sentence is high (Reimers & Gurevych 2019, arXiv 1908.10084).

>>> PostFilter().of("The sea was calm. The sea was calm. We sailed on.").text
'The sea was calm. We sailed on.'
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from llmlab.recipe import Section

Embed = Callable[[Sequence[str]], Tensor]  # N texts -> float [N, D], such as `LanguageModel.embed`

# A sentence with the white space after it: up to a mark that ends one, or up to the end of its line. A run of marks is
# looked at from its first one only, else a line of dots would take the square of its length.
_SENTENCE = re.compile(
    r"\S.*?(?:(?<![.!?\u2026])[.!?\u2026]++[\"'\u201d\u2019)\]]*+(?=\s)"
    r"|[\u3002\uff01\uff1f]++[\"'\u201d\u2019\u300d\u300f\uff09]*+|(?=\n)|$)\s*+",
    re.DOTALL,
)
_WORD = re.compile(r"[\u3400-\u9fff]|[^\W_]+(?:['\u2019][^\W_]+)*")


class Removed(NamedTuple):
    """Letters `start` to `end` of the text were taken out: they repeat the sentence that begins at `earlier`."""

    start: int
    end: int
    earlier: int


class Filtered(NamedTuple):
    """What is left of a text, what was taken out, in order, and how many sentences there had been."""

    text: str
    removed: tuple[Removed, ...]
    sentences: int


class PostFilter(Section):
    """What counts as a repeat of an earlier sentence. Sentences of fewer than `words` words are never one: people say
    `Yes.` twice."""

    overlap: float = Field(0.7, gt=0, le=1, description="share of a sentence's runs of words that one earlier one has")
    run: int = Field(2, ge=1, description="words of a run")
    words: int = Field(4, ge=1, description="shorter sentences are kept, however often they come")
    cosine: float = Field(0.9, gt=-1, le=1, description="above it two sentences mean the same; asks an encoder")

    def of(self, text: str, embed: Embed | None = None) -> Filtered:
        """The text without its repeats; every sentence is held against those before it that were kept."""
        parts = sentences(text)
        places = [0]
        for part in parts:
            places.append(places[-1] + len(part))
        found = self.repeats(parts, embed)
        removed = tuple(
            Removed(places[row], places[row + 1], places[earlier])
            for row, earlier in enumerate(found)
            if earlier is not None
        )
        left = "".join(part for part, earlier in zip(parts, found, strict=True) if earlier is None)
        return Filtered(left.rstrip() if removed else text, removed, len(parts))

    def repeats(self, parts: Sequence[str], embed: Embed | None = None) -> list[int | None]:
        """For each sentence the first earlier kept one that it repeats, None where it says something new."""
        spoken = [words_of(part) for part in parts]
        known: dict[tuple[str, ...], list[int]] = defaultdict(list)  # in which kept sentences a run stands
        unit_ND = self._units(parts, spoken, embed)
        kept: list[int] = []  # of those that are long enough
        found: list[int | None] = []
        for row, words in enumerate(spoken):
            runs, near = _runs(words, self.run), set[int]()
            if len(words) >= self.words:
                shared = Counter(earlier for run in runs for earlier in known[run])
                near = {earlier for earlier, count in shared.items() if count >= self.overlap * len(runs)}
                if unit_ND is not None:
                    alike = (unit_ND[kept] @ unit_ND[row] > self.cosine).nonzero()[:, 0].tolist()
                    near.update(kept[place] for place in alike)
            found.append(min(near, default=None))
            if not near:
                kept += [row] if len(words) >= self.words else []
                for run in runs:
                    known[run].append(row)
        return found

    def _units(self, parts: Sequence[str], spoken: Sequence[Sequence[str]], embed: Embed | None) -> Tensor | None:
        """Vectors of length 1 [N, D] of the sentences that are long enough, zeros for the others."""
        asked = [row for row, words in enumerate(spoken) if len(words) >= self.words]
        if embed is None or not asked:
            return None
        told_ND = F.normalize(embed([parts[row].strip() for row in asked]).float(), dim=-1)
        unit_ND = told_ND.new_zeros(len(parts), told_ND.shape[1])
        unit_ND[asked] = told_ND
        return unit_ND


def sentences(text: str) -> list[str]:
    """The text cut after each sentence and each line; the pieces joined are the text. An abbreviation ends one too:
    the piece is a short one then, and those are kept."""
    spoken = text.lstrip()
    if not spoken:
        return [text] if text else []
    first, *parts = _SENTENCE.findall(spoken)
    return [text[: len(text) - len(spoken)] + first, *parts]


def words_of(sentence: str) -> list[str]:
    """Words in lower case, without marks; a Chinese character is one."""
    return [word.lower() for word in _WORD.findall(sentence)]


def _runs(words: Sequence[str], size: int) -> set[tuple[str, ...]]:
    size = min(size, len(words))
    return {tuple(words[start : start + size]) for start in range(len(words) - size + 1)} if size else set()
