"""What finds the passages of a file that bear on a question, by name.

Each reads the file once to build what it searches in; texts are read again by their places. N chunks, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from llmlab.checkpoints.where import cached
from llmlab.longtext.bm25 import BEGINNING, CJK, Index, words
from llmlab.longtext.chunk import spans_at
from llmlab.longtext.hierarchy import sentence_ends
from llmlab.longtext.likelihood import question_likelihood
from llmlab.longtext.questions import telling
from llmlab.longtext.textfile import TextFile
from llmlab.recipe import KINDS, Section

if TYPE_CHECKING:
    from llmlab.language_model import LanguageModel

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
BATCH = 256  # texts embedded at once, so that no more of them are held
# Below these a file is held to have nothing to do with a question: the share of the question's words (by idf) in the
# best chunk, and the cosine of the best window. Of 40 questions about other things the first refuses half and the
# second 39; of 100 about Moby-Dick the first refuses three and the second two (LOG.md).
COVERAGE, COSINE = 0.3, 0.43
WINDOW, LAP = 400, 100  # characters of what is embedded as one: more blur, and MiniLM was trained on 128 tokens


class Ranked(NamedTuple):
    """Chunks of a file, best first: where they lie, their scores, and whether they seem to bear on the question."""

    spans_N2: Int64
    score_N: Float32
    bears: bool


class Finder(ABC):
    """A file made ready for questions."""

    @abstractmethod
    def rank(self, question: str) -> Ranked:
        """The chunks that may bear on the question, best first; none where no word or meaning is shared."""

    @abstractmethod
    def likeness(self, question: str, texts: Sequence[str]) -> Float32:
        """[N]: how much each text, as a sentence of the file, is like the question: about 0 to 1."""


class _Kind(Section, ABC):
    @abstractmethod
    def build(self, file: TextFile, size: int, overlap: int) -> Finder:
        """Read the file in chunks of at most `size` characters. Errors: InputError as `TextFile.chunks`, and for
        weights that are not on this machine."""


class Bm25(_Kind):
    """The words of the question, weighed by how rare they are. Needs no weights; as fast as reading."""

    kind: Literal["bm25"] = "bm25"
    k1: float = Field(1.2, ge=0, description="how soon more of the same word tells nothing more")
    b: float = Field(0.75, ge=0, le=1, description="how much long chunks are damped")

    def build(self, file: TextFile, size: int, overlap: int) -> Bm25Finder:
        return Bm25Finder(self, file, size, overlap)


class Minilm(_Kind):
    """The meaning of the question, by a sentence encoder that reads the whole file first: slow for a large one."""

    kind: Literal["minilm"] = "minilm"
    model: str = Field("minilm", description="the sentence encoder, a pulled name or a path")

    def build(self, file: TextFile, size: int, overlap: int) -> MinilmFinder:
        return MinilmFinder(_encoder(self.model), file, size, overlap)


class Fused(_Kind):
    """Words choose the candidates, words and meaning together order them: the cost of a question is bounded, however
    long the file. Questions in Chinese or Japanese, which MiniLM does not read, go by words alone."""

    kind: Literal["fused"] = "fused"
    model: str = Field("minilm", description="the sentence encoder, a pulled name or a path")
    candidates: int = Field(32, ge=1, description="how many of the chunks that share words are read for meaning")
    meaning: float = Field(0.5, ge=0, le=1, description="the weight of meaning in the order; the rest is that of words")

    def build(self, file: TextFile, size: int, overlap: int) -> FusedFinder:
        return FusedFinder(self, _encoder(self.model), file, size, overlap)


class Reranked(_Kind):
    """What words and meaning have found, ordered anew by a language model that is asked how likely the question is
    behind each passage. A question costs one reading of the passages."""

    kind: Literal["reranked"] = "reranked"
    first: Fused = Field(Fused(), description="what finds the passages")
    model: str = Field("smollm2", description="the language model, a pulled name or a path")
    passages: int = Field(20, ge=1, description="how many are read, none of which overlap")
    likelihood: float = Field(0.1, ge=0, description="what a nat a token of the question counts beside the first score")

    def build(self, file: TextFile, size: int, overlap: int) -> RerankedFinder:
        from llmlab.language_model import load

        return RerankedFinder(self, load(self.model, "auto"), self.first.build(file, size, overlap), file)


Retriever = Annotated[Bm25 | Minilm | Fused | Reranked, *KINDS]


def standard() -> tuple[Bm25 | Fused | Reranked, str]:
    """The best retriever that this machine has weights for, and what there is to say of that ("" for nothing)."""
    if cached("minilm") is None:
        return Bm25(), "found by words alone; llmlab pull minilm, and meaning counts too"
    return (Fused() if cached("smollm2") is None else Reranked()), ""


def _encoder(name: str) -> LanguageModel:
    from llmlab.language_model import load

    return load(name)


class Bm25Finder(Finder):
    def __init__(self, how: Bm25, file: TextFile, size: int, overlap: int) -> None:
        self.index = Index(how.k1, how.b)
        places = list[Int64]()
        for lot in file.chunks(size, overlap):
            self.index.add([chunk.text for chunk in lot])
            places.append(np.array([(chunk.start, chunk.end) for chunk in lot], np.int64).reshape(-1, 2))
        self.spans_N2 = np.concatenate(places)

    def rank(self, question: str) -> Ranked:
        score_N = self.index.scores(telling(question))
        order = np.argsort(-score_N, kind="stable")
        order = order[score_N[order] > 0]
        bears = len(order) > 0 and float(self.index.coverage(telling(question)).max()) >= COVERAGE
        return Ranked(self.spans_N2[order], score_N[order], bears)

    def likeness(self, question: str, texts: Sequence[str]) -> Float32:
        """The share of the question's words that a text has, by idf."""
        weight = {word: self.index.idf(word[:BEGINNING] + "*") for word in words(telling(question))}
        have = [{word[:BEGINNING] for word in words(text)} for text in texts]
        shares = [sum(w for word, w in weight.items() if word[:BEGINNING] in has) for has in have]
        return np.array(shares, np.float32) / max(sum(weight.values()), 1e-9)


class MinilmFinder(Finder):
    """Each chunk by the best of its windows, whose vectors are kept in half precision."""

    def __init__(self, encoder: LanguageModel, file: TextFile, size: int, overlap: int) -> None:
        self.encoder = encoder
        chunks, windows, vectors = list[Int64](), list[Int64](), list[npt.NDArray[np.float16]]()
        for lot in file.chunks(size, overlap):
            chunks.append(np.array([(chunk.start, chunk.end) for chunk in lot], np.int64).reshape(-1, 2))
        for lot in file.chunks(min(WINDOW, size), min(LAP, overlap)):
            windows.append(np.array([(chunk.start, chunk.end) for chunk in lot], np.int64).reshape(-1, 2))
            texts = [chunk.text for chunk in lot]
            for first in range(0, len(texts), BATCH):
                vectors.append(_vectors(encoder, texts[first : first + BATCH]).astype(np.float16))
        self.spans_N2, self.windows_W2 = np.concatenate(chunks), np.concatenate(windows)
        self.vectors_WD = np.concatenate(vectors)

    def rank(self, question: str) -> Ranked:
        cosine_W = self.vectors_WD @ _vectors(self.encoder, [question])[0].astype(np.float16)
        score_N = best_within(self.spans_N2, self.windows_W2, cosine_W.astype(np.float32))
        order = np.argsort(-score_N, kind="stable")
        return Ranked(self.spans_N2[order], score_N[order], float(cosine_W.max()) >= COSINE)

    def likeness(self, question: str, texts: Sequence[str]) -> Float32:
        return np.asarray(_vectors(self.encoder, texts) @ _vectors(self.encoder, [question])[0], np.float32)


class FusedFinder(Finder):
    def __init__(self, how: Fused, encoder: LanguageModel, file: TextFile, size: int, overlap: int) -> None:
        self.how, self.encoder, self.file = how, encoder, file
        self.words = Bm25Finder(Bm25(), file, size, overlap)

    def rank(self, question: str) -> Ranked:
        found = self.words.rank(question)
        spans_N2, word_N = found.spans_N2[: self.how.candidates], found.score_N[: self.how.candidates]
        if not len(spans_N2) or CJK.search(question):  # MiniLM reads English
            return found
        windows_W2, texts = self._windows(spans_N2)
        cosine_W = _vectors(self.encoder, texts) @ _vectors(self.encoder, [question])[0]
        meaning_N = best_within(spans_N2, windows_W2, cosine_W)
        weight = self.how.meaning
        score_N = weight * meaning_N + (1 - weight) * word_N / word_N[0]
        order = np.argsort(-score_N, kind="stable")
        return Ranked(spans_N2[order], score_N[order].astype(np.float32), float(cosine_W.max()) >= COSINE)

    def likeness(self, question: str, texts: Sequence[str]) -> Float32:
        """Words and meaning, half and half."""
        by_word = self.words.likeness(question, texts)
        if CJK.search(question):
            return by_word
        by_meaning = _vectors(self.encoder, texts) @ _vectors(self.encoder, [question])[0]
        return np.asarray((by_word + by_meaning) / 2, np.float32)

    def _windows(self, spans_N2: Int64) -> tuple[Int64, list[str]]:
        """What of these chunks is embedded: chunks that overlap are one stretch, each of which is cut into windows."""
        windows, texts = list[tuple[int, int]](), list[str]()
        stretches = merged(spans_N2)
        for (start, _), text in zip(stretches, self.file.texts(stretches), strict=True):
            for first, last in spans_at(sentence_ends(text), len(text), WINDOW, LAP).tolist():
                if text[first:last].strip():
                    windows.append((start + first, start + last))
                    texts.append(text[first:last])
        return np.array(windows, np.int64).reshape(-1, 2), texts


class RerankedFinder(Finder):
    def __init__(self, how: Reranked, lm: LanguageModel, first: FusedFinder, file: TextFile) -> None:
        self.how, self.lm, self.first, self.file = how, lm, first, file

    def rank(self, question: str) -> Ranked:
        found = self.first.rank(question)
        if not len(found.spans_N2) or CJK.search(question):  # neither model reads Chinese
            return found
        spans, scores = apart(found, self.how.passages)
        likely_N = question_likelihood(self.lm, question, list(self.file.texts(spans)))
        score_N = np.array(scores, np.float32) + self.how.likelihood * likely_N
        order = np.argsort(-score_N, kind="stable")
        return Ranked(np.array(spans, np.int64)[order], score_N[order], found.bears)

    def likeness(self, question: str, texts: Sequence[str]) -> Float32:
        return self.first.likeness(question, texts)


def apart(ranked: Ranked, most: int) -> tuple[list[tuple[int, int]], list[float]]:
    """The best spans of which no two overlap, and their scores."""
    chosen, scores = list[tuple[int, int]](), list[float]()
    for (start, end), score in zip(ranked.spans_N2.tolist(), ranked.score_N.tolist(), strict=True):
        if len(chosen) == most:
            break
        if all(end <= first or start >= last for first, last in chosen):
            chosen.append((start, end))
            scores.append(score)
    return chosen, scores


def merged(spans_N2: Int64) -> list[tuple[int, int]]:
    """What the spans cover, in order, those that overlap joined."""
    found = list[tuple[int, int]]()
    for start, end in sorted(map(tuple, spans_N2.tolist())):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def best_within(spans_N2: Int64, windows_W2: Int64, score_W: Float32) -> Float32:
    """[N]: the best score of the (ordered) windows whose middle lies in each span; -1 where there is none."""
    middle_W = windows_W2.sum(1) // 2
    first_N = np.searchsorted(middle_W, spans_N2[:, 0])
    after_N = np.searchsorted(middle_W, spans_N2[:, 1])
    padded = np.append(score_W, np.float32(-1))
    # reduceat takes the stretches between neighbouring places; every other one is a span.
    best = np.maximum.reduceat(padded, np.stack([first_N, after_N], axis=1).ravel().clip(max=len(score_W)))[::2]
    return np.where(after_N > first_N, best, np.float32(-1)).astype(np.float32)


def _vectors(encoder: LanguageModel, texts: Sequence[str]) -> Float32:
    return np.asarray(encoder.embed(texts).numpy(), np.float32)
