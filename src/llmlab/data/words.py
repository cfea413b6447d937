"""Words of many texts at once, as arrays: which text, how long, and a key that equal words share on any machine.

A word is a run of characters between spaces. Chinese and Japanese write none, so there every character counts as a word
of its own, as a search engine's plain segmentation has it (Unicode UAX 29 without a dictionary). What depends on the
length of words, or on which words there are, does not carry over to such text; `View.unspaced` says where.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Int = npt.NDArray[np.int64]
Key = npt.NDArray[np.uint64]
Bool = npt.NDArray[np.bool_]

SPACE, MARK, LETTER, DIGIT, HAN, HAN_MARK = range(6)
_FACTOR = 0x9E3779B97F4A7C15
IN_WORD = np.arange(6) != SPACE
IN_BARE_WORD, ALPHABETIC = np.isin(np.arange(6), (LETTER, DIGIT, HAN)), np.isin(np.arange(6), (LETTER, HAN))
WIDE = np.isin(np.arange(6), (HAN, HAN_MARK))


def _class(code: int) -> int:
    letter = chr(code)
    if 0x3040 <= code <= 0x30FF or 0x31F0 <= code <= 0x31FF or 0x3400 <= code <= 0x9FFF or 0xF900 <= code <= 0xFAFF:
        return HAN
    if letter.isspace():
        return SPACE
    if unicodedata.category(letter)[0] in "PSC":
        return HAN_MARK if 0x3000 <= code <= 0x303F or 0xFF00 <= code <= 0xFFEF else MARK
    return DIGIT if unicodedata.category(letter)[0] == "N" else LETTER


def _classes() -> npt.NDArray[np.uint8]:
    """The class of every character of the first plane; between its punctuation and its wide forms lie letters."""
    table = np.full(0x10000, LETTER, np.uint8)
    table[0x3400:0xA000] = table[0xF900:0xFB00] = HAN
    for code in (*range(0x3400), *range(0xFE10, 0xFFFF)):
        table[code] = _class(code)
    table.flags.writeable = False
    return table


def mixed(key: Key) -> Key:
    """Every bit of the answer depends on every bit of the key (splitmix64, Steele et al. 2014)."""
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key ^ (key >> np.uint64(31))


CLASSES = _classes()
LETTERS = mixed(np.arange(1, 0x10001, dtype=np.uint64))  # what stands for a character in a key
LETTERS.flags.writeable = False


@dataclass(frozen=True)
class Characters:
    """Texts end to end: `code` uint32 [C], `kind` uint8 [C], and `starts` int64 [texts + 1]."""

    code: npt.NDArray[np.uint32]
    kind: npt.NDArray[np.uint8]
    starts: Int

    @staticmethod
    def of(texts: Any) -> Characters:
        """`texts` is an Arrow array of strings without nulls."""
        import pyarrow.compute as pc

        lengths = pc.utf8_length(texts).to_numpy(zero_copy_only=False)
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
        code = np.frombuffer("".join(texts.to_pylist()).encode("utf-32-le"), np.uint32)
        kind = CLASSES[np.minimum(code, 0xFFFF)]
        beyond = code > 0xFFFF
        if beyond.any():
            kind[beyond] = np.where(code[beyond] >= 0x20000, HAN, MARK)  # pictures, or more Han
        return Characters(code, kind, starts)

    def count(self, *kinds: int) -> Int:
        """int64 [texts]: how many characters of these kinds each has."""
        return sums(np.isin(self.kind, kinds), self.starts)


@dataclass(frozen=True)
class Words:
    """`text` int64 [W], which text; `key` uint64 [W]; `length` int64 [W], characters; `alphabetic` bool [W], whether a
    letter is among them; `starts` int64 [texts + 1]."""

    text: Int
    key: Key
    length: Int
    alphabetic: Bool
    starts: Int

    @staticmethod
    def of(texts: Any, bare: bool = False) -> Words:
        """Of an Arrow array of strings. `bare` words are lower case and hold letters and digits only."""
        import pyarrow.compute as pc

        return Words.among(Characters.of(pc.utf8_lower(texts) if bare else texts), bare)

    @staticmethod
    def among(characters: Characters, bare: bool = False) -> Words:
        kind, first = characters.kind, characters.starts[:-1]
        inside = (IN_BARE_WORD if bare else IN_WORD)[kind]
        before = np.zeros(len(kind), bool)  # the character before belongs to a word of the same text
        before[1:] = inside[:-1]
        before[first[first < len(kind)]] = False
        after_wide = np.zeros(len(kind), bool)
        after_wide[1:] = WIDE[kind[:-1]]
        begins = inside & (~before | (kind == HAN) | (after_wide & (kind != HAN_MARK)))
        goes_on = np.zeros(len(kind), bool)
        goes_on[:-1] = (before & ~begins & inside)[1:]
        start, end = np.flatnonzero(begins), np.flatnonzero(inside & ~goes_on) + 1
        alphabetic = np.logical_or.reduceat(ALPHABETIC[kind], start) if len(start) else np.zeros(0, bool)
        starts = np.searchsorted(start, characters.starts).astype(np.int64)
        text = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        return Words(text, _keys(characters.code, start, end), end - start, alphabetic, starts)

    def grams(self, n: int) -> tuple[Int, Key]:
        """(index of the first word, key) of every run of n words within one text."""
        if len(self.text) < n:
            return np.empty(0, np.int64), np.empty(0, np.uint64)
        last = len(self.text) - n + 1
        first = np.flatnonzero(self.text[:last] == self.text[n - 1 :])
        key = np.zeros(len(first), np.uint64)
        for step in range(n):
            key += self.key[first + step] * np.uint64(pow(_FACTOR, step, 1 << 64))
        return first, mixed(key)


def sums(values: npt.NDArray[Any], starts: Int) -> Int:
    """int64 [texts]: the sum of `values` of each text, which begins at its start."""
    total = np.concatenate([np.zeros(1, np.int64), np.cumsum(values, dtype=np.int64)])
    found: Int = total[starts[1:]] - total[starts[:-1]]
    return found


def _keys(code: npt.NDArray[np.uint32], start: Int, end: Int) -> Key:
    """Polynomials in a word's characters, of all words by one running sum."""
    if not len(start):
        return np.zeros(0, np.uint64)
    base = np.zeros(len(code), np.int64)
    base[start] = start
    place = np.arange(len(code)) - np.maximum.accumulate(base)  # in its word; beyond its end it does not matter
    longest = int((end - start).max())
    powers = np.full(longest + 1, np.uint64(_FACTOR))
    powers[0] = 1
    np.multiply.accumulate(powers, out=powers)
    letter = LETTERS[np.minimum(code, 0xFFFF)]
    if (beyond := code > 0xFFFF).any():
        letter[beyond] = mixed(code[beyond].astype(np.uint64) + np.uint64(1))
    total = np.zeros(len(code) + 1, np.uint64)
    np.cumsum(letter * powers[np.minimum(place, longest)], out=total[1:])
    return mixed(total[end] - total[start] + (end - start).astype(np.uint64))
