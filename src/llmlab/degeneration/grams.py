"""Long n-grams of many texts: which of them stand in several. All at once, by hashes; no loop over tokens.

N windows of all texts. A hash has 64 bits: among a million windows two different ones share it once in 37 million.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmlab.data.batch import Ids

Int64 = npt.NDArray[np.int64]
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Grams:
    """Every window of `n` tokens: its hash, its text, and where it begins in all texts end to end."""

    n: int
    ids: Int64
    hash_N: npt.NDArray[np.uint64]
    text_N: Int64
    start_N: Int64

    def texts_with(self) -> Int64:
        """In how many texts each window stands, [N]."""
        order = np.lexsort((self.text_N, self.hash_N))
        hashes, texts = self.hash_N[order], self.text_N[order]
        first = np.r_[True, hashes[1:] != hashes[:-1]] if len(order) else np.zeros(0, bool)
        new = first | np.r_[True, texts[1:] != texts[:-1]] if len(order) else first
        group = np.cumsum(first) - 1
        counts = np.bincount(group, weights=new).astype(np.int64)
        found = np.empty(len(order), np.int64)
        found[order] = counts[group]
        return found

    def window(self, place: int) -> list[int]:
        start = int(self.start_N[place])
        ids: list[int] = self.ids[start : start + self.n].tolist()
        return ids


def grams(texts: Sequence[Ids], n: int) -> Grams:
    """Texts shorter than n have none."""
    sizes = np.array([len(text) for text in texts], np.int64)
    ids = np.concatenate([np.empty(0, np.int64), *(np.asarray(text, np.int64) for text in texts)])
    text = np.repeat(np.arange(len(texts)), sizes)
    start = np.flatnonzero(text[: len(ids) - n + 1] == text[n - 1 :]) if len(ids) >= n else np.empty(0, np.int64)
    mixed = _mixed(ids.astype(np.uint64))
    hashed = np.zeros(max(0, len(ids) - n + 1), np.uint64)
    with np.errstate(over="ignore"):
        for offset in range(n if len(hashed) else 0):
            hashed = hashed * _MULTIPLIER + mixed[offset : offset + len(hashed)]
    return Grams(n, ids, _mixed(hashed)[start], text[start], start)


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Each value on its own, scattered over 64 bits (splitmix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        values = values + _MULTIPLIER
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))


def sharing(texts: Sequence[Ids], n: int) -> list[bool]:
    """Of each text whether it has a window of n tokens that another one has."""
    found, all_ = np.zeros(len(texts), bool), grams(texts, n)
    found[all_.text_N[all_.texts_with() > 1]] = True
    return [bool(one) for one in found]
