"""Retrieve, then read: an answer to a question from a file longer than any context, with the passages it rests on.

>>> read("moby_dick.txt", "Where was the first mate born?").sources[0].text

The file is never held: it is read once to index its chunks, and again for the texts of those that were found. Without
a model the answer is a quoted sentence; with one, the model reads the passages that fit its context and says it in its
words.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmlab.errors import InputError
from llmlab.longtext.answering import model_answer
from llmlab.longtext.chunk import check
from llmlab.longtext.hierarchy import sentence_ends, sentences
from llmlab.longtext.questions import checked
from llmlab.longtext.retrievers import Finder, Retriever, apart, standard
from llmlab.longtext.textfile import TextFile
from llmlab.recipe import Section, parse

if TYPE_CHECKING:
    from llmlab.language_model import LanguageModel

MOST = 5  # sources of an answer
SHOWN = 800  # characters of each, around its middle, for a terminal
SIZE, DENSE_SIZE = 1200, 400  # letters of a chunk; of Chinese or Japanese, whose letters say more
NOTHING = "Nothing in this text seems to bear on the question."


@dataclass(frozen=True)
class Source:
    """A quoted passage: `text == content[start:end]` of the decoded file (`textfile`)."""

    text: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Answer:
    """What was found. `found` is false where the sources, though the nearest there are, seem to have nothing to do with
    the question; the answer then says so. `cited` are the sources (from 1) that the answer rests on."""

    answer: str
    sources: list[Source]
    found: bool
    cited: list[int]
    retriever: str
    model: str | None
    notice: str

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def told(self) -> str:
        """The answer and its sources for a terminal."""
        lines = [self.answer, *(["", "Nearest passages:" if not self.found else "Sources:"] if self.sources else [])]
        for number, source in enumerate(self.sources, 1):
            place = f"[{number}] characters {source.start} to {source.end}, score {source.score:.3f} ({self.retriever})"
            lines += [place, "    " + middle(" ".join(source.text.split()), SHOWN), ""]
        return "\n".join(lines).rstrip()


class Reading(Section):
    """How a file is read for a question."""

    retriever: Retriever


class Reader:
    """A file made ready for questions: indexed once, asked often.

    `retriever`: a kind of `retrievers` as a section, a mapping or a name; None: the best that this machine has weights
    for. `size` and `overlap` of its chunks in characters; None: 1200, or 400 of a text that is mostly Chinese or
    Japanese, and a quarter of that.
    Errors: InputError for a file that is no text, and for chunks that go nowhere.
    """

    def __init__(
        self,
        path: str | Path,
        retriever: Any = None,
        encoding: str = "utf-8",
        size: int | None = None,
        overlap: int | None = None,
    ) -> None:
        chosen, self.notice = standard() if retriever is None else (_retriever(retriever), "")
        self.file = TextFile.of(path, encoding)
        size = (DENSE_SIZE if self.file.is_dense() else SIZE) if size is None else size
        overlap = size // 4 if overlap is None else overlap
        check(size, overlap)
        self.size, self.kind = size, chosen.kind
        self.finder: Finder = chosen.build(self.file, size, overlap)

    def ask(self, question: str, lm: LanguageModel | None = None, model: str | None = None) -> Answer:
        """The answer and at most five sources, best first. Errors: InputError for a question that is empty, or too long
        for the model."""
        asked = checked(question)
        ranked = self.finder.rank(asked)
        spans, scores = apart(ranked, MOST)
        sources = self._sources(spans, scores)
        texts = [source.text for source in sources]
        if lm is not None:
            said, cited = model_answer(lm, asked, texts if ranked.bears else [])
        else:
            said, cited = self._sentence(asked, texts) if ranked.bears else ("", [])
        return Answer(said or NOTHING, sources, bool(said), cited, self.kind, model, self.notice)

    def _sources(self, spans: list[tuple[int, int]], scores: list[float]) -> list[Source]:
        """The passages as they are quoted: with the sentences around them, a chunk on either side."""
        wide = widened(spans, self.size)
        found = []
        for (start, end), (first, _last), text, score in zip(spans, wide, self.file.texts(wide), scores, strict=True):
            ends_M = sentence_ends(text) + first
            before_M, after_M = ends_M[ends_M <= start], ends_M[ends_M >= end]
            begin = 0 if first == 0 else int(before_M[0]) if len(before_M) else start
            stop = int(after_M[-1]) if len(after_M) else end
            piece = text[begin - first : stop - first].lstrip()
            begin, piece = stop - len(piece), piece.rstrip()
            found.append(Source(piece, begin, begin + len(piece), round(score, 4)))
        return found

    def _sentence(self, question: str, texts: list[str]) -> tuple[str, list[int]]:
        """The sentence of the sources that is most like the question, those of the best source a little before others,
        and the source it is from."""
        told = [
            (text[start:end], number) for number, text in enumerate(texts, 1) for start, end in sentences(text).tolist()
        ]
        like_M = self.finder.likeness(question, [sentence for sentence, _ in told])
        later_M = 0.05 * np.array([number for _, number in told])
        best, number = told[int((like_M - later_M).argmax())]
        return " ".join(best.split()), [number]


def read(
    path: str | Path,
    question: str,
    model: str | None = None,
    retriever: Any = None,
    encoding: str = "utf-8",
    size: int | None = None,
    overlap: int | None = None,
    weights: str = "auto",
    device: str = "cpu",
) -> Answer:
    """One question to a file, as `Reader` and `Reader.ask` have it; `model` is loaded by its name."""
    asked = checked(question)  # before a long read
    lm = None
    if model is not None:
        from llmlab.language_model import load

        lm = load(model, weights, device)
        model_answer(lm, asked, [])  # says at once where the question is too long
    return Reader(path, retriever, encoding, size, overlap).ask(asked, lm, model)


def middle(text: str, most: int) -> str:
    """A text of at most so many characters, cut on both sides alike."""
    if len(text) <= most:
        return text
    start = (len(text) - most) // 2
    return f"… {text[start : start + most].strip()} …"


def widened(spans: list[tuple[int, int]], margin: int) -> list[tuple[int, int]]:
    """Each span with so many characters more on either side; where two would meet, they share what lies between."""
    order = sorted(range(len(spans)), key=lambda number: spans[number])
    found = [(max(0, start - margin), end + margin) for start, end in spans]
    for one, next_ in itertools.pairwise(order):
        middle = (spans[one][1] + spans[next_][0]) // 2
        found[one] = (found[one][0], min(found[one][1], middle))
        found[next_] = (max(found[next_][0], middle), found[next_][1])
    return found


def _retriever(value: Any) -> Retriever:
    if isinstance(value, str) and not value.strip():
        raise InputError("retriever", "is empty", "bm25, minilm, fused or reranked")
    return parse(Reading, {"retriever": value}, "read").retriever
