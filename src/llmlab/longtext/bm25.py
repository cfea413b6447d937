"""Okapi BM25: how well the words of a question fit each chunk of a long text.

    score(q, c) = sum over the words w of q of  idf(w) * f / (f + k1 * (1 - b + b * |c| / mean length))
    idf(w) = log(1 + (N - n + 0.5) / (n + 0.5)),  f how often w is in c, n in how many of N chunks

(Robertson & Zaragoza 2009, The Probabilistic Relevance Framework: BM25 and Beyond, with the idf that is never
negative, as in Lucene; its constant factor k1 + 1 orders nothing and is left out.) Words are lower-cased and lose the
endings that a question seldom shares with a text; Chinese and Japanese count by pairs of characters.

The index is a list of segments, one for each lot of chunks that came at once: their postings by word, in three arrays.
Nothing is sorted again at the end, so building needs no more memory than the index. Texts are not kept.

N chunks, P postings (a word in a chunk), U different words of a segment.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORD = re.compile(rf"[^\W_{_CJK}]{{1,64}}|[{_CJK}]")
_PAIR = re.compile(rf"(?=([{_CJK}]{{2}}))")
_VOWEL = re.compile(r"[aeiouy]")


def words(text: str) -> list[str]:
    """The words of a text as they are counted, before their endings are taken off: runs of letters and digits in small
    letters; of Chinese and Japanese each character and each pair of neighbours."""
    small = text.lower()
    found = _WORD.findall(small)
    return found if small.isascii() else found + _PAIR.findall(small)


def stem(word: str) -> str:
    """A word without its commonest English endings: the plural, -ed, -ing, a last e (after Porter 1980, in short).

    >>> [stem(word) for word in ("ships", "berries", "berry", "hoisted", "hopping", "boxes", "whales", "this", "red")]
    ['ship', 'berri', 'berri', 'hoist', 'hop', 'box', 'whal', 'this', 'red']
    """
    if len(word) < 4 or not word.isascii():
        return word
    if word.endswith("ies"):
        word = word[:-3] + "y"
    elif word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for ending in ("ing", "ed"):
        root = word.removesuffix(ending)
        if len(root) > 2 and root != word and _VOWEL.search(root):
            word = root[:-1] if root[-1] == root[-2] and root[-1] not in "ls" else root
            break
    if len(word) > 3 and word[-1] == "e":
        return word[:-1]
    return word[:-1] + "i" if len(word) > 3 and word[-1] == "y" else word


class _Vocabulary(dict[str, int]):
    """Words to numbers, a new number for what is new; words of one stem share it."""

    def __init__(self) -> None:
        self.stems: dict[str, int] = {}

    def __missing__(self, word: str) -> int:
        number = self[word] = self.stems.setdefault(stem(word), len(self.stems))
        return number


@dataclass(frozen=True)
class _Segment:
    """The postings of chunks that came together: word `words_U[i]` has those from `at_U[i]` to `at_U[i + 1]`."""

    words_U: npt.NDArray[np.int32]
    at_U: npt.NDArray[np.int64]  # one longer than U
    chunk_P: npt.NDArray[np.int32]
    count_P: npt.NDArray[np.uint16]

    def postings(self, word: int) -> slice:
        place = int(np.searchsorted(self.words_U, word))
        if place == len(self.words_U) or self.words_U[place] != word:
            return slice(0, 0)
        return slice(int(self.at_U[place]), int(self.at_U[place + 1]))


class Index:
    """Chunks by their words. `add` them in order, then ask for `scores`; more may be added at any time."""

    def __init__(self, k1: float = 1.2, b: float = 0.75) -> None:
        self.k1, self.b = k1, b
        self._vocabulary = _Vocabulary()
        self._segments: list[_Segment] = []
        self._lengths: list[npt.NDArray[np.int32]] = []

    def __len__(self) -> int:
        return sum(map(len, self._lengths))

    @property
    def nbytes(self) -> int:
        """Bytes of the postings and lengths; the words come to these."""
        arrays = [array for one in self._segments for array in (one.words_U, one.at_U, one.chunk_P, one.count_P)]
        return sum(array.nbytes for array in (*arrays, *self._lengths))

    def add(self, texts: Sequence[str]) -> None:
        """The next chunks."""
        first, number = len(self), self._vocabulary.__getitem__
        counted = [np.fromiter(map(number, words(text)), np.int64) for text in texts]
        length_N = np.array([len(one) for one in counted], np.int32)
        if not length_N.sum():
            self._lengths.append(length_N)
            return
        chunk = np.repeat(np.arange(len(texts), dtype=np.int64), length_N)
        # Sorted by word, then by chunk: one number for both is sorted faster than pairs.
        both_P, count_P = np.unique(np.concatenate(counted) * len(texts) + chunk, return_counts=True)
        words_U, at_U = np.unique(both_P // len(texts), return_index=True)
        self._lengths.append(length_N)
        self._segments.append(
            _Segment(
                words_U.astype(np.int32),
                np.append(at_U, len(both_P)),
                (both_P % len(texts) + first).astype(np.int32),
                count_P.clip(max=65535).astype(np.uint16),
            )
        )

    def scores(self, question: str) -> npt.NDArray[np.float32]:
        """[N]: the score of each chunk; 0 where it has no word of the question."""
        length_N = np.concatenate([*self._lengths, np.zeros(0, np.int32)])
        score_N = np.zeros(len(length_N), np.float32)
        relative_N = length_N / max(1.0, float(length_N.mean())) if len(length_N) else length_N
        damp_N = self.k1 * (1 - self.b + self.b * relative_N)
        for word, times in self._known(question).items():
            chunk_P, count_P = self._postings(word)
            score_N[chunk_P] += times * self._idf(len(chunk_P)) * count_P / (count_P + damp_N[chunk_P])
        return score_N

    def idf(self, word: str) -> float:
        """How much a word (in small letters) tells: log(1 + (N - n + 0.5) / (n + 0.5)); most where it is not there."""
        number = self._vocabulary.stems.get(stem(word))
        return self._idf(0 if number is None else len(self._postings(number)[0]))

    def _idf(self, chunks: int) -> float:
        return math.log(1 + (len(self) - chunks + 0.5) / (chunks + 0.5))

    def _known(self, question: str) -> Counter[int]:
        stems = self._vocabulary.stems
        return Counter(stems[root] for root in map(stem, words(question)) if root in stems)

    def _postings(self, word: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        slices = [(one, one.postings(word)) for one in self._segments]
        chunks = [one.chunk_P[where] for one, where in slices]
        counts = [one.count_P[where] for one, where in slices]
        return np.concatenate(chunks), np.concatenate(counts).astype(np.float32)
