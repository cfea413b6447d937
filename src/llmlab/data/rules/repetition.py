"""The repetition rules of Gopher (Rae et al. 2021, table A1): what a text says again.

Shares of characters are of those in words, spaces not counted. A part that stands twice counts once: its first time is
no repetition. N-grams that overlap count each character once. Of Chinese, n-grams are of characters; a run of ten
characters comes back sooner than one of ten words, so the rules are stricter there.
"""

from typing import Literal

import numpy as np
from pydantic import Field

from llmlab.data.rules.rule import Filter
from llmlab.data.rules.view import Float, Lines, View, repeated
from llmlab.data.words import Bool, sums


class DuplicateLines(Filter):
    """Lines that stood before."""

    kind: Literal["duplicate_lines"] = "duplicate_lines"
    most: float = Field(0.3, ge=0, le=1, description="Share of a text's lines.")
    characters: float = Field(0.2, ge=0, le=1, description="Share of the characters in lines.")

    def keep(self, view: View) -> Bool:
        return _fresh(view.lines, self.most, self.characters)


class DuplicateParagraphs(Filter):
    """Paragraphs that stood before."""

    kind: Literal["duplicate_paragraphs"] = "duplicate_paragraphs"
    most: float = Field(0.3, ge=0, le=1, description="Share of a text's paragraphs.")
    characters: float = Field(0.2, ge=0, le=1, description="Share of the characters in paragraphs.")

    def keep(self, view: View) -> Bool:
        return _fresh(view.paragraphs, self.most, self.characters)


class TopGrams(Filter):
    """The most frequent n-gram, where it stands more than once."""

    kind: Literal["top_grams"] = "top_grams"
    most: tuple[tuple[int, float], ...] = Field(
        ((2, 0.2), (3, 0.18), (4, 0.16)), description="Words of an n-gram, and the share of characters it may hold."
    )

    def keep(self, view: View) -> Bool:
        kept = np.ones(len(view), bool)
        for n, most in self.most:
            kept &= top_gram(view, n) <= most
        return kept


class DuplicateGrams(Filter):
    """All n-grams that stood before."""

    kind: Literal["duplicate_grams"] = "duplicate_grams"
    most: tuple[tuple[int, float], ...] = Field(
        ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.1)),
        description="Words of n-grams, and the share of characters that repeated ones may hold.",
    )

    def keep(self, view: View) -> Bool:
        kept = np.ones(len(view), bool)
        for n, most in self.most:
            kept &= repeated_grams(view, n) <= most
        return kept


def _fresh(lines: Lines, most: float, characters: float) -> Bool:
    again = lines.repeated
    return (lines.share(again) <= most) & (lines.weighted(again, lines.length) <= characters)


def top_gram(view: View, n: int) -> Float:
    """float [texts]: share of the characters in words that the n-gram with most of them holds; 0 if none is twice."""
    words, share = view.words, np.zeros(len(view))
    first, key = words.grams(n)
    if not len(first):
        return share
    total = np.concatenate([[0], np.cumsum(words.length)])
    size, text = total[first + n] - total[first], words.text[first]
    order = np.lexsort((key, text))
    edge = np.flatnonzero(np.diff(key[order], prepend=~key[order[:1]]) | np.diff(text[order], prepend=-1).astype(bool))
    count = np.diff(np.append(edge, len(order)))
    held = np.where(count > 1, count * size[order[edge]], 0)
    np.maximum.at(share, text[order[edge]], held / np.maximum(view.word_characters, 1)[text[order[edge]]])
    return share


def repeated_grams(view: View, n: int) -> Float:
    """float [texts]: share of the characters in words that lie in an n-gram which stood before."""
    words = view.words
    first, key = words.grams(n)
    again = first[repeated(words.text[first], key)]
    cover = np.zeros(len(words.text) + 1, np.int64)
    np.add.at(cover, again, 1)
    np.add.at(cover, again + n, -1)
    covered = np.cumsum(cover[:-1]) > 0
    share: Float = sums(np.where(covered, words.length, 0), words.starts) / np.maximum(view.word_characters, 1)
    return share


GOPHER_REPETITION = (DuplicateLines(), DuplicateParagraphs(), TopGrams(), DuplicateGrams())
