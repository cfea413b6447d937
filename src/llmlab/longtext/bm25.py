"""Okapi BM25: how well the words of a question fit each chunk of a long text.

    score(q, c) = sum over the terms w of q of  idf(w) * f / (f + k1 * (1 - b + b * |c| / mean length))
    idf(w) = log(1 + (N - n + 0.5) / (n + 0.5)),  f how often w is in c, n in how many of N chunks

(Robertson & Zaragoza 2009, The Probabilistic Relevance Framework: BM25 and Beyond, with the idf that is never
negative, as in Lucene; its constant factor k1 + 1 orders nothing and is left out.) Each word is two terms: itself in
small letters, and its first five letters, which found more than a stemmer did (LOG.md); Chinese and Japanese count by
characters and by pairs of them. |c| counts words.

The index is a list of segments, one for each lot of chunks that came at once: their postings by term, in four arrays.
Nothing is sorted again at the end, so building needs no more memory than the index. Texts are not kept.

N chunks, P postings (a term in a chunk), U different terms of a segment.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmlab.longtext.questions import FUNCTION

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
CJK = re.compile(f"[{_CJK}]")
_WORD = re.compile(rf"[^\W_{_CJK}]{{1,64}}|[{_CJK}]")
_PAIR = re.compile(rf"(?=([{_CJK}]{{2}}))")
BEGINNING = 5  # letters
UNKNOWN = -1  # and below: numbers that no term has


def words(text: str) -> list[str]:
    """The words of a text: runs of letters and digits in small letters, cut at 64; of Chinese and Japanese each
    character and each pair of neighbours."""
    small = text.lower()
    found = _WORD.findall(small)
    return found if small.isascii() else found + _PAIR.findall(small)


class _Vocabulary(dict[str, int]):
    """Terms to numbers, a new number for what is new. A beginning is kept as `abcde*`."""

    def __init__(self) -> None:
        self.beginning: list[int] = []  # by number of a word, that of its first letters

    def __missing__(self, term: str) -> int:
        number = self[term] = len(self)
        self.beginning.append(number)
        if not term.endswith("*"):
            self.beginning[number] = self[term[:BEGINNING] + "*"]
        return number


@dataclass(frozen=True)
class _Segment:
    """The postings of chunks that came together: term `terms_U[i]` has those from `at_U[i]` to `at_U[i + 1]`."""

    terms_U: npt.NDArray[np.int32]
    at_U: npt.NDArray[np.int64]  # one longer than U
    chunk_P: npt.NDArray[np.int32]
    count_P: npt.NDArray[np.uint16]

    def postings(self, term: int) -> slice:
        place = int(np.searchsorted(self.terms_U, term))
        if place == len(self.terms_U) or self.terms_U[place] != term:
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
        """Bytes of the postings and lengths; the words themselves come to these."""
        arrays = [array for one in self._segments for array in (one.terms_U, one.at_U, one.chunk_P, one.count_P)]
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
        word = np.concatenate(counted)
        term = np.concatenate([word, np.array(self._vocabulary.beginning, np.int64)[word]])
        # Sorted by term, then by chunk: one number for both is sorted faster than pairs.
        both_P, count_P = np.unique(term * len(texts) + np.tile(chunk, 2), return_counts=True)
        terms_U, at_U = np.unique(both_P // len(texts), return_index=True)
        self._lengths.append(length_N)
        self._segments.append(
            _Segment(
                terms_U.astype(np.int32),
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
        for term, times in self._terms(question).items():
            chunk_P, count_P = self._postings(term)
            score_N[chunk_P] += times * self._idf(len(chunk_P)) * count_P / (count_P + damp_N[chunk_P])
        return score_N

    def coverage(self, question: str) -> npt.NDArray[np.float32]:
        """[N]: the share of the question's words that each chunk has, each word by its idf; what is nowhere counts
        most. 1: all of them."""
        share_N, total = np.zeros(len(self), np.float32), 0.0
        for term in self._terms(question):
            chunk_P, _ = self._postings(term)
            share_N[chunk_P] += self._idf(len(chunk_P))
            total += self._idf(len(chunk_P))
        return share_N / max(total, 1e-9)

    def idf(self, word: str) -> float:
        """How much a word (in small letters) tells: log(1 + (N - n + 0.5) / (n + 0.5)); most where it is not there."""
        return self._idf(len(self._postings(self._vocabulary.get(word, UNKNOWN))[0]))

    def numbers(self, text: str) -> npt.NDArray[np.int64]:
        """[words]: the numbers of the beginnings of a text's words, function words and unknown ones left out."""
        known = [self._vocabulary.get(word[:BEGINNING] + "*") for word in words(text) if word not in FUNCTION]
        return np.array([number for number in known if number is not None], np.int64)

    def weights(self) -> npt.NDArray[np.float64]:
        """[terms]: how much each stands for the whole: how often it is there times its idf, 1 for the heaviest."""
        count_V, chunks_V = np.zeros(len(self._vocabulary)), np.zeros(len(self._vocabulary))
        for one in self._segments:
            count_V[one.terms_U] += np.add.reduceat(one.count_P.astype(np.float64), one.at_U[:-1])
            chunks_V[one.terms_U] += np.diff(one.at_U)
        weight_V = count_V * np.log(1 + (len(self) - chunks_V + 0.5) / (chunks_V + 0.5))
        return np.asarray(weight_V / max(float(weight_V.max(initial=0)), 1e-9), np.float64)

    def _idf(self, chunks: int) -> float:
        return math.log(1 + (len(self) - chunks + 0.5) / (chunks + 0.5))

    def _terms(self, question: str) -> Counter[int]:
        """How often the question says each term, by number; terms that are nowhere have numbers of their own."""
        found, unknown = Counter[int](), dict[str, int]()
        for word in words(question):
            for term in (word, word[:BEGINNING] + "*"):
                number = self._vocabulary.get(term)
                found[unknown.setdefault(term, UNKNOWN - len(unknown)) if number is None else number] += 1
        return found

    def _postings(self, term: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        slices = [(one, one.postings(term)) for one in self._segments]
        chunks = [np.zeros(0, np.int32), *(one.chunk_P[where] for one, where in slices)]
        counts = [np.zeros(0, np.uint16), *(one.count_P[where] for one, where in slices)]
        return np.concatenate(chunks), np.concatenate(counts).astype(np.float32)
