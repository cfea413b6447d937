"""Near duplicates: documents whose sets of word runs are almost the same, by MinHash and its buckets (Broder 1997).

A document goes if an earlier one is near it, whether that one stays or goes. So of a chain a, b, c in which only
neighbours are alike, a alone stays; nothing depends on which pair is looked at first, and the first of a group of
copies is always kept.

A signature has one number for each of `hashes` bins, made as in "Fast Similarity Sketching" (Dahlgaard, Knudsen and
Thorup 2017): a shingle is thrown into one bin a round, and rounds go on only for documents with an empty bin. The
share of equal bins is an unbiased estimate of the Jaccard similarity, as with `hashes` permutations, and a long
document costs one hash a shingle in place of one a shingle and permutation. Buckets (bands of rows) propose,
signatures decide.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from llmlab.data.rules.view import strings
from llmlab.data.words import Int, Key, Words, mixed
from llmlab.recipe import Section

Signatures = npt.NDArray[np.uint32]

EMPTY = np.uint32(0xFFFFFFFF)
ROUNDS = 16  # throws of each shingle, before short documents get the hash of every bin
TOGETHER = 1 << 14  # rows that are compared, or shingles that get the hash of every bin, at a time
MISSED, FALSE = 0.9, 0.1  # how bad a missed pair is, and a needless comparison


class Near(Section):
    """Near duplicates, by MinHash of runs of words; a Chinese character counts as a word."""

    similarity: float = Field(0.8, gt=0, lt=1, description="Jaccard similarity of word runs from which on a text goes.")
    words: int = Field(5, ge=1, description="Words of a run (a shingle); case and punctuation do not count.")
    hashes: int = Field(128, ge=16, le=4096, description="Numbers of a signature; more estimate more closely.")

    def bands(self) -> tuple[int, int]:
        """(bands, rows of each): the split that misses least, and compares least, around `similarity`.

        Two documents of Jaccard s share a bucket with probability 1 - (1 - s^rows)^bands. What is above the line and
        shares none, and what is below and shares one, are integrated over s and weighed.
        """
        s = (np.arange(1000) + 0.5) / 1000
        above = s >= self.similarity
        best, found = np.inf, (1, 1)
        for rows in range(1, self.hashes + 1):
            bands = self.hashes // rows
            meet = 1 - (1 - s**rows) ** bands
            cost = MISSED * float((1 - meet)[above].sum()) + FALSE * float(meet[~above].sum())
            if cost < best:
                best, found = cost, (bands, rows)
        return found


def shingles(section: Near, texts: Any) -> tuple[Int, Key]:
    """(text, key) of every run of words of an Arrow array of strings, in the order of texts. A text of fewer words is
    one run; one without words has none."""
    words = Words.of(texts, bare=True)
    first, key = words.grams(section.words)
    text = words.text[first]
    count = np.diff(words.starts)
    for few in range(1, section.words):
        short = np.flatnonzero(count == few)
        whole = np.zeros(len(short), np.uint64)
        for step in range(few):
            whole = mixed(whole * np.uint64(3) + words.key[words.starts[short] + step])
        text, key = np.concatenate([text, short]), np.concatenate([key, whole])
    if len(text) > len(first):
        order = np.argsort(text, kind="stable")
        text, key = text[order], key[order]
    return text, key


def signatures(section: Near, texts: list[str]) -> Signatures:
    """uint32 [texts, hashes], each text's depending on it alone. Of a text without words all are `EMPTY`."""
    text, key = shingles(section, strings(texts))
    made = np.full((len(texts), section.hashes), EMPTY)
    here = np.ones(len(key), bool)
    for number in range(ROUNDS):
        if not here.any():
            return made
        thrown = np.full_like(made, EMPTY)
        hashed = mixed(key[here] + np.uint64(number * 0x9E3779B97F4A7C15 % 2**64))
        bin_ = (hashed & np.uint64(0xFFFFFFFF)) % np.uint64(section.hashes)
        value = np.minimum((hashed >> np.uint64(32)).astype(np.uint32), EMPTY - np.uint32(1))
        np.minimum.at(thrown.reshape(-1), text[here] * section.hashes + bin_.astype(np.int64), value)
        empty = made == EMPTY
        made[empty] = thrown[empty]
        here = (made == EMPTY).any(1)[text]
    _fill(made, text[here], key[here])
    return made


def _fill(made: Signatures, text: Int, key: Key) -> None:
    """Short documents: every bin that is still empty takes the least of all shingles under a hash of its own."""
    salt = mixed(np.arange(1, made.shape[1] + 1, dtype=np.uint64) * np.uint64(0xD1B54A32D192ED03))
    empty = made == EMPTY
    for at in range(0, len(key), TOGETHER):
        part, which = key[at : at + TOGETHER], text[at : at + TOGETHER]
        hashed = (mixed(part[:, None] ^ salt) >> np.uint64(32)).astype(np.uint32)
        hashed = np.minimum(hashed, EMPTY - np.uint32(1))
        edge = np.flatnonzero(np.diff(which, prepend=-1))
        least = np.minimum.reduceat(hashed, edge, axis=0)
        rows = which[edge]
        made[rows] = np.where(empty[rows], np.minimum(made[rows], least), made[rows])  # two parts may share a document


def earlier(section: Near, made: Signatures) -> Int:
    """int64 [texts]: the number of an earlier document that is near each, -1 where there is none.

    `made` may lie on the disk: what is held in memory is 8 bytes a document and band, one band at a time.
    """
    bands, rows = section.bands()
    found = np.full(len(made), -1, np.int64)
    some = _in_parts(made, lambda part: (part != EMPTY).any(1)).astype(bool)
    for band in range(bands):
        columns = slice(band * rows, (band + 1) * rows)
        bucket = _in_parts(made, lambda part, columns=columns: _bucket(part[:, columns]))
        order = np.argsort(bucket, kind="stable")
        order = order[some[order]]
        same = bucket[order[1:]] == bucket[order[:-1]]
        group = np.cumsum(np.concatenate([[True], ~same])) - 1 if len(order) else np.empty(0, np.int64)
        first = order[np.searchsorted(group, group)] if len(order) else order
        later = np.flatnonzero(np.concatenate([[False], same])) if len(order) else np.empty(0, np.int64)
        for other in (first[later], order[later - 1]):  # the first of the bucket, then the neighbour
            _compare(section, made, order[later], other, found)
    return found


def _compare(section: Near, made: Signatures, one: Int, other: Int, found: Int) -> None:
    """Note in `found` which of the pairs are near by their signatures."""
    asked = (found[one] < 0) & (one != other)
    one, other = one[asked], other[asked]
    for at in range(0, len(one), TOGETHER):
        a, b = one[at : at + TOGETHER], other[at : at + TOGETHER]
        near = (made[a] == made[b]).mean(1) >= section.similarity
        found[a[near]] = b[near]


def _bucket(part: Signatures) -> Key:
    key = np.zeros(len(part), np.uint64)
    for column in range(part.shape[1]):
        key = mixed(key * np.uint64(3) + part[:, column].astype(np.uint64))
    return key


def _in_parts(made: Signatures, function: Any) -> Any:
    parts = [function(made[at : at + TOGETHER]) for at in range(0, len(made), TOGETHER)]
    return np.concatenate(parts) if parts else np.empty(0, np.uint64)
