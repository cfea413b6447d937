"""Summaries of texts longer than a context, over their hierarchy: sentences, pieces that fit, sections, the whole.

- `extract`: quoted sentences, without a model (`extract`).
- `map_reduce`: each piece is summed up by itself, the summaries of a section together, those of the sections together;
  all of one level in one batch (Wu et al. 2021, arXiv 2109.10862, without its training).
- `refine`: one summary that each piece in turn is worked into.

A model reads at most `limit` characters: of a longer text each section is first thinned to its best sentences, which
the answer says. So time and memory are bounded whatever the file's size. Greedy, so that equal texts give equal
summaries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmlab.errors import InputError, unknown
from llmlab.inference.batching import Request
from llmlab.inference.sampling import Sampling
from llmlab.longtext.extract import best_sentences
from llmlab.longtext.hierarchy import Part, sections, sentence_ends
from llmlab.longtext.textfile import TextFile

if TYPE_CHECKING:
    from llmlab.language_model import LanguageModel

METHODS = ("extract", "map_reduce", "refine")
LIMIT = 100_000  # characters a model reads
SECTIONS = 200  # more than so many are told together with their neighbours
LETTERS = 6  # of an English word, its blank included


@dataclass(frozen=True)
class SectionSummary:
    title: str
    start: int
    end: int
    summary: str


@dataclass
class Summary:
    """`calls` of the model, what it read and wrote in tokens, and the `levels` of summaries over one another."""

    summary: str
    method: str
    sections: list[SectionSummary]
    model: str | None = None
    calls: int = 0
    tokens_read: int = 0
    tokens_written: int = 0
    levels: int = 0
    thinned: bool = False

    def as_json(self) -> dict[str, Any]:
        return {**self.__dict__, "sections": [section.__dict__ for section in self.sections]}


def summarize(
    path: str | Path,
    model: str | None = None,
    method: str | None = None,
    words: int = 120,
    encoding: str = "utf-8",
    limit: int = LIMIT,
    weights: str = "auto",
    device: str = "cpu",
) -> Summary:
    """The summary of a file, in about `words` words. `method`: of `METHODS`; None: map_reduce with a model, else
    extract. Errors: InputError for a file that is no text, a method without its model, and more words than the model's
    context has room for."""
    method = method or ("extract" if model is None else "map_reduce")
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if words < 1 or limit < 1:
        raise InputError("words" if words < 1 else "limit", "is below 1")
    if (model is None) != (method == "extract"):
        hint = "add --model smollm2" if model is None else "leave it out, or take map_reduce or refine"
        raise InputError("model", f"{method} {'needs one' if model is None else 'needs none'}", hint)
    file = TextFile.of(path, encoding)
    parts = grouped(sections(file.blocks()), SECTIONS)
    if model is None:
        return _extracted(file, parts, words)
    from llmlab.language_model import load

    writer = Writer(load(model, weights, device), words)
    thinned = parts[-1].end > limit
    share = [max(1, limit * (part.end - part.start) // parts[-1].end) for part in parts]
    if thinned:
        texts = [" ".join(one.text for one in found) for found in best_sentences(file, parts, share)]
    else:
        texts = file.texts([(part.start, part.end) for part in parts])
    done = (_map_reduce if method == "map_reduce" else _refined)(writer, parts, texts)
    done.model, done.thinned = model, thinned
    done.calls, done.tokens_read, done.tokens_written = writer.calls, writer.tokens_read, writer.tokens_written
    return done


def grouped(parts: Sequence[Part], most: int) -> list[Part]:
    """At most so many sections: neighbours joined, under the title of the first."""
    step = max(1, math.ceil(len(parts) / most))
    lots = [parts[first : first + step] for first in range(0, len(parts), step)]
    return [Part(lot[0].title, lot[0].start, lot[-1].end) for lot in lots]


def _extracted(file: TextFile, parts: Sequence[Part], words: int) -> Summary:
    each = best_sentences(file, parts, [LETTERS * max(20, words // 4)] * len(parts))
    whole = best_sentences(file, [Part("", 0, parts[-1].end)], [LETTERS * words])[0]
    told = [_section(part, " ".join(one.text for one in found)) for part, found in zip(parts, each, strict=True)]
    return Summary(_flat(" ".join(one.text for one in whole)), "extract", told, levels=1)


def _section(part: Part, summary: str) -> SectionSummary:
    return SectionSummary(part.title, part.start, part.end, _flat(summary))


def _flat(text: str) -> str:
    return " ".join(text.split())


# ---------------------------------------------------------------- with a model


class Writer:
    """A model that sums up texts, each call within its context, and the count of what it did."""

    def __init__(self, lm: LanguageModel, words: int) -> None:
        self.lm, self.words = lm, words
        self.tokens = math.ceil(1.5 * words) + 16  # of a summary, at most
        self.calls = self.tokens_read = self.tokens_written = 0
        self.room = lm.context - self.tokens - len(self._ids("", "")) - 16
        if self.room < 3 * self.tokens:
            most = max(1, int((lm.context - len(self._ids("", "")) - 80) / 6))
            raise InputError("words", f"{words} leave the context of {lm.context} no room to read", f"at most {most}")

    def pieces(self, text: str, room: int | None = None) -> list[str]:
        """A text cut between sentences into pieces that fit a call; halved as often as it needs."""
        room = self.room if room is None else room
        if self.size(text) <= room:
            return [text] if text.strip() else []
        middle = len(text) // 2
        ends = sentence_ends(text)
        near = int(ends[abs(ends - middle).argmin()]) if len(ends) else middle
        cut = near if len(text) // 4 < near < 3 * len(text) // 4 else middle
        return self.pieces(text[:cut], room) + self.pieces(text[cut:], room)

    def size(self, text: str) -> int:
        return len(self.lm.tokenizer.encode(_flat(text)))

    def fit(self, texts: Sequence[str]) -> list[str]:
        """Texts joined in order, as many as fit a call; at least two at a time, cut where they must be."""
        half = self.room // 2 - 2
        lots: list[list[str]] = []
        left = 0
        for text in texts:
            text = self.pieces(text, half)[0] if self.size(text) > half else text
            need = self.size(text) + 2
            if not lots or need > left:
                lots.append([])
                left = self.room
            lots[-1].append(text)
            left -= need
        return ["\n".join(lot) for lot in lots]

    def write(self, texts: Sequence[str], before: str = "") -> list[str]:
        """One summary a text, all in one batch; `before` is a summary that they are to be worked into."""
        requests = [self._ids(text, before) for text in texts]
        sampling = Sampling(temperature=0.0, max_new_tokens=self.tokens, repetition_penalty=1.1)
        if self.lm.batching is not None:
            made = self.lm.batching.generate([Request(ids, sampling, self.lm.stop_ids) for ids in requests])
            written = [[id for id in one.ids if id not in self.lm.stop_ids] for one in made]
            told = [self.lm.tokenizer.decode(ids) for ids in written]
        else:
            replies = [self.lm.reply(ids, sampling) for ids in requests]
            told = [reply.read() for reply in replies]
            written = [reply.ids for reply in replies]
        self.calls += len(texts)
        self.tokens_read += sum(map(len, requests))
        self.tokens_written += sum(map(len, written))
        return [_flat(text) or _flat(source)[: LETTERS * self.words] for text, source in zip(told, texts, strict=True)]

    def _ids(self, text: str, before: str) -> list[int]:
        asked = f"Summarize the text in at most {self.words} words. Say only what it says.\n\n{_flat(text)}"
        if before:
            asked = (
                f"Here is a summary so far: {before}\n\nHere is how the text goes on: {_flat(text)}\n\n"
                f"Write one summary of both in at most {self.words} words."
            )
        if self.lm.tokenizer.chat_template is None:
            return self.lm.prompt(f"{asked}\n\nSummary:")
        return self.lm.prompt([{"role": "user", "content": asked}])


def _map_reduce(writer: Writer, parts: Sequence[Part], texts: Sequence[str]) -> Summary:
    cut = [writer.pieces(text) for text in texts]
    owner = [number for number, pieces in enumerate(cut) for _ in pieces]
    told = writer.write([piece for pieces in cut for piece in pieces])
    by_part = [[text for text, one in zip(told, owner, strict=True) if one == number] for number in range(len(parts))]
    levels = 1
    while any(len(found) > 1 for found in by_part):  # each turn at least halves the longest
        lots = [writer.fit(found) if len(found) > 1 else [] for found in by_part]
        made = iter(writer.write([text for lot in lots for text in lot]))
        by_part = [[next(made) for _ in lot] if lot else found for lot, found in zip(lots, by_part, strict=True)]
        levels += 1
    whole = [found[0] for found in by_part if found]
    while len(whole) > 1:
        whole = writer.write(writer.fit(whole))
        levels += 1
    told_parts = [_section(part, found[0]) for part, found in zip(parts, by_part, strict=True) if found]
    return Summary(whole[0] if whole else "", "map_reduce", told_parts, levels=levels)


def _refined(writer: Writer, parts: Sequence[Part], texts: Sequence[str]) -> Summary:
    room = writer.room - writer.tokens - 48  # the summary so far, and the words around it
    summary, turns = "", 0
    for text in texts:
        for piece in writer.pieces(text, room):
            before = writer.pieces(summary, writer.tokens)[0] if summary else ""
            (summary,) = writer.write([piece], before)
            turns += 1
    return Summary(summary, "refine", [], levels=turns)
