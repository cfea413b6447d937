"""The quality rules of Gopher (Rae et al. 2021, appendix A.1.1). They were made for English.

Of Chinese, characters count as words, so `word_count` and the shares of words stand; the mean length of words would be
1 and the stop words are English, so those two do not judge it.
"""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from llmlab.data.rules.rule import Filter
from llmlab.data.rules.view import View, strings
from llmlab.data.words import Bool, Words, sums

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")


class WordCount(Filter):
    """So many words, neither fewer nor more."""

    kind: Literal["word_count"] = "word_count"
    least: int = Field(50, ge=0, description="Words of a text; of Chinese, characters.")
    most: int = Field(100_000, ge=1, description="Words of a text at most.")

    def keep(self, view: View) -> Bool:
        return (view.word_counts >= self.least) & (view.word_counts <= self.most)


class WordLength(Filter):
    """The mean length of words; not of texts without spaces."""

    needs_spaces: ClassVar[bool] = True
    kind: Literal["word_length"] = "word_length"
    least: float = Field(3.0, ge=0, description="Mean characters of a word.")
    most: float = Field(10.0, gt=0, description="Mean characters of a word at most.")

    def keep(self, view: View) -> Bool:
        mean = view.word_characters / np.maximum(view.word_counts, 1)
        return (mean >= self.least) & (mean <= self.most)


class SymbolWords(Filter):
    """Hash signs, and ellipses, for each word."""

    kind: Literal["symbol_words"] = "symbol_words"
    most: float = Field(0.1, ge=0, description="Of each of the two, for a word.")

    def keep(self, view: View) -> Bool:
        bound = self.most * view.word_counts
        return (view.counted("#") <= bound) & (view.counted(r"\.\.\.|…") <= bound)


class BulletLines(Filter):
    """Lines that begin with a bullet."""

    kind: Literal["bullet_lines"] = "bullet_lines"
    most: float = Field(0.9, ge=0, le=1, description="Share of a text's lines.")

    def keep(self, view: View) -> Bool:
        return view.lines.share(view.lines.matches("^[•‣●·*-]")) <= self.most


class EllipsisLines(Filter):
    """Lines that end with an ellipsis."""

    kind: Literal["ellipsis_lines"] = "ellipsis_lines"
    most: float = Field(0.3, ge=0, le=1, description="Share of a text's lines.")

    def keep(self, view: View) -> Bool:
        return view.lines.share(view.lines.matches(r"(\.\.\.|…)$")) <= self.most


class AlphabeticWords(Filter):
    """Words with a letter in them."""

    kind: Literal["alphabetic_words"] = "alphabetic_words"
    least: float = Field(0.8, ge=0, le=1, description="Share of a text's words.")

    def keep(self, view: View) -> Bool:
        words = view.words
        return sums(words.alphabetic, words.starts) >= self.least * view.word_counts


class StopWords(Filter):
    """English stop words; not of texts without spaces."""

    needs_spaces: ClassVar[bool] = True
    kind: Literal["stop_words"] = "stop_words"
    least: int = Field(2, ge=0, description="How many of the words must be stop words.")
    words: tuple[str, ...] = Field(STOP_WORDS, min_length=1, description="What counts as one, in lower case.")

    def keep(self, view: View) -> Bool:
        words = view.bare_words
        return sums(np.isin(words.key, Words.of(strings(self.words), bare=True).key), words.starts) >= self.least


GOPHER_QUALITY = (
    WordCount(),
    WordLength(),
    SymbolWords(),
    BulletLines(),
    EllipsisLines(),
    AlphabeticWords(),
    StopWords(),
)
