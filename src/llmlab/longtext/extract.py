"""A summary without a model: the sentences that are most like the whole, quoted in their order.

A sentence is worth the mean weight of its words, a word's weight being how often the text has it times its idf over
chunks (the centroid of Radev et al. 2004, MEAD). Each one chosen takes weight off its words, so that the next says
something else (as SumBasic, Nenkova & Vanderwende 2005). Two readings of the file, in chunks; of each section only the
best sentences are kept meanwhile.

V terms, M sentences.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llmlab.longtext.bm25 import Index
from llmlab.longtext.hierarchy import Part, sentences
from llmlab.longtext.textfile import TextFile

CHUNK = 1200  # characters, read without overlap
KEPT = 64  # sentences of a section that are remembered for one that may be chosen, at least
SHORTEST, LONGEST = 20, 600  # characters of a sentence worth quoting


@dataclass(frozen=True, order=True)
class Sentence:
    """A sentence of the file, by what it is worth; `terms` are its words by number."""

    worth: float
    start: int
    text: str
    terms: tuple[int, ...]


def best_sentences(file: TextFile, parts: Sequence[Part], characters: Sequence[int]) -> list[list[Sentence]]:
    """For each section the chosen sentences in their order, together at most so many characters (but one at least,
    where there is any)."""
    index = Index()
    for lot in file.chunks(CHUNK, 0):
        index.add([chunk.text for chunk in lot])
    weight_V = index.weights()
    kept: list[list[Sentence]] = [[] for _ in parts]
    ends = np.array([part.end for part in parts])
    for lot in file.chunks(CHUNK, 0):
        for chunk in lot:
            part = min(int(np.searchsorted(ends, chunk.start, side="right")), len(parts) - 1)
            room = max(KEPT, characters[part] // SHORTEST)
            for sentence in _weighed(chunk.start, chunk.text, index, weight_V):
                heap = kept[part]
                (heapq.heappush if len(heap) < room else heapq.heappushpop)(heap, sentence)
    return [chosen(found, weight_V, most) for found, most in zip(kept, characters, strict=True)]


def _weighed(start: int, text: str, index: Index, weight_V: npt.NDArray[np.float64]) -> list[Sentence]:
    found = []
    for first, last in sentences(text).tolist():
        if SHORTEST <= last - first <= LONGEST or last - first == len(text):
            terms = index.numbers(text[first:last])
            if len(terms):
                worth = float(weight_V[terms].sum()) / (len(terms) + 4)  # a short sentence has too easy a mean
                found.append(Sentence(worth, start + first, text[first:last], tuple(terms.tolist())))
    return found


def chosen(found: Sequence[Sentence], weight_V: npt.NDArray[np.float64], characters: int) -> list[Sentence]:
    """The sentences that together fit, best first by what they add, then put in their order."""
    weight_V = weight_V.copy()
    terms = [np.array(sentence.terms, np.int64) for sentence in found]

    def worth(number: int) -> float:
        return float(weight_V[terms[number]].sum()) / (len(terms[number]) + 4)

    # Weights only fall, so what was worth most and still is, is best of all (lazy greedy: Minoux 1978).
    heap = [(-worth(number), number) for number in range(len(found))]
    heapq.heapify(heap)
    taken, left = list[int](), characters
    while heap:
        _, best = heapq.heappop(heap)
        if heap and -worth(best) > heap[0][0]:
            heapq.heappush(heap, (-worth(best), best))
            continue
        if taken and len(found[best].text) > left:
            break
        taken.append(best)
        left -= len(found[best].text) + 1
        weight_V[terms[best]] *= 0.25
    return sorted((found[number] for number in taken), key=lambda sentence: sentence.start)
