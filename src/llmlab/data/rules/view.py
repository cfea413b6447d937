"""What rules look at: the texts of a batch, cut into words, lines and paragraphs once for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow
import pyarrow.compute as pc

from llmlab.data.words import HAN, LETTER, Bool, Characters, Int, Words, sums

Float = npt.NDArray[np.float64]

UNSPACED = 0.3  # share of Han characters among letters from which on a text counts as one without spaces


@dataclass(frozen=True)
class Lines:
    """The parts of texts that are not blank: `text` int64 [L], which text; `values` an Arrow array of strings [L],
    white space at both ends left out; `texts`, how many there are."""

    text: Int
    values: Any
    texts: int

    @staticmethod
    def of(texts: Any, mark: str) -> Lines:
        parts = pc.split_pattern(texts, mark)
        text = np.repeat(np.arange(len(texts)), pc.list_value_length(parts).to_numpy(zero_copy_only=False))
        values = pc.utf8_trim_whitespace(parts.flatten())
        there = pc.not_equal(values, "")
        return Lines(text[numpy(there)], values.filter(there), len(texts))

    @cached_property
    def length(self) -> Int:
        """Characters of each."""
        return numpy(pc.utf8_length(self.values)).astype(np.int64)

    @cached_property
    def repeated(self) -> Bool:
        """Whether a line stood in its text before."""
        code = numpy(pc.dictionary_encode(self.values).indices).astype(np.int64)
        return repeated(self.text, code.astype(np.uint64))

    def share(self, which: Bool) -> Float:
        """Of each text's lines, the share for which it is so; 0 of a text without lines."""
        return self.weighted(which, np.ones(len(which), np.int64))

    def weighted(self, which: Bool, weight: Int) -> Float:
        """The same by the weight of lines."""
        total = np.bincount(self.text, weight, minlength=self.texts)
        return np.bincount(self.text[which], weight[which], minlength=self.texts) / np.maximum(total, 1)

    def matches(self, pattern: str) -> Bool:
        """Which lines hold what the pattern (RE2) describes."""
        return numpy(pc.match_substring_regex(self.values, pattern))


@dataclass(frozen=True)
class View:
    """A batch of texts, an Arrow array of strings without nulls. What is asked for is made once."""

    texts: Any

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def characters(self) -> Characters:
        return Characters.of(self.texts)

    @cached_property
    def words(self) -> Words:
        """Between spaces, punctuation included."""
        return Words.among(self.characters)

    @cached_property
    def bare_words(self) -> Words:
        """In lower case, without punctuation."""
        return Words.of(self.texts, bare=True)

    @cached_property
    def lines(self) -> Lines:
        return Lines.of(self.texts, "\n")

    @cached_property
    def paragraphs(self) -> Lines:
        return Lines.of(self.texts, "\n\n")

    @cached_property
    def unspaced(self) -> Bool:
        """bool [texts]: Chinese, Japanese, and what else writes words without spaces by Han characters."""
        han, others = self.characters.count(HAN), self.characters.count(LETTER)
        return han > UNSPACED * (han + others)

    @cached_property
    def word_counts(self) -> Int:
        return np.diff(self.words.starts)

    @cached_property
    def word_characters(self) -> Int:
        """int64 [texts]: the characters of all words."""
        return sums(self.words.length, self.words.starts)

    def counted(self, pattern: str) -> Int:
        """int64 [texts]: how often the pattern (RE2) is found."""
        return numpy(pc.count_substring_regex(self.texts, pattern)).astype(np.int64)


def numpy(array: Any) -> npt.NDArray[Any]:
    found: npt.NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return found


def repeated(text: Int, key: npt.NDArray[np.uint64]) -> Bool:
    """Which entries have the key of an earlier entry of the same text. Entries stand in the order of texts."""
    order = np.lexsort((np.arange(len(key)), key, text))
    same = np.zeros(len(key), bool)
    sorted_key, sorted_text = key[order], text[order]
    same[1:] = (sorted_key[1:] == sorted_key[:-1]) & (sorted_text[1:] == sorted_text[:-1])
    found = np.zeros(len(key), bool)
    found[order] = same
    return found


def strings(texts: Any) -> Any:
    """Python's texts as the Arrow array that rules look at."""
    return pyarrow.array(texts, pyarrow.large_string())
