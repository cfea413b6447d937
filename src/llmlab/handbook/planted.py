"""Repetition put into texts of people, so that it is known where it stands: what the measures, the filter and the queue
of texts for a person to look at make of it. A token is a word here; no model is asked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch

from llmlab.data import bundled
from llmlab.evaluation.repetition import copied, repetition
from llmlab.handbook.openings import paragraphs
from llmlab.handbook.question import Figures
from llmlab.inference.loops import Looping, loop_in
from llmlab.inference.postfilter import PostFilter, sentences, words_of
from llmlab.runtime import generator

TEXTS, WORDS = 60, 160
LONGEST, LEAST = 40, 24  # words of a loop's period; of the whole of it
QUEUED = 0.2  # rep-4 above which a text goes to a person, as one that loops does
BOOKS = ("moby_dick", "sanguo_yanyi")
SENTENCES, BLOCKS, SHORT = 24, 60, 6  # of a block of text; blocks a book; words of a sentence that is planted
STRANGERS = {"moby_dick": "zebra", "sanguo_yanyi": "鮨"}  # no word of the book

Words = list[str]


class Planted(NamedTuple):
    """A text whose words from `start` on repeat every `period`."""

    words: Words
    start: int
    period: int


def passages(seed: int, count: int = TEXTS) -> list[Words]:
    """Beginnings of long paragraphs, in an order by seed."""
    every = paragraphs()
    order = torch.randperm(len(every), generator=generator(seed, "handbook", "planted")).tolist()
    return [every[place].split()[:WORDS] for place in order[:count]]


def looped(words: Sequence[str], source: torch.Generator) -> Planted:
    """The text until somewhere, then one phrase of it over and over to the same length or more."""
    while True:
        period, start = (int(torch.randint(low, high, (), generator=source)) for low, high in ((1, LONGEST), (20, 80)))
        phrase, times = list(words[start : start + period]), max(3, -(-LEAST // period))
        if words[start - 1] != phrase[-1] and not _periodic(phrase):
            return Planted([*words[:start], *phrase * max(times, (WORDS - start) // period)], start, period)


def _periodic(phrase: Words) -> bool:
    """Whether it is a shorter one several times."""
    return any(phrase == phrase[:size] * (len(phrase) // size) for size in range(1, len(phrase)))


def nearly(one: Planted) -> Words:
    """The same loop, but each copy of the phrase says its own number first, so that no two are equal."""
    times = (len(one.words) - one.start) // one.period
    phrase = one.words[one.start : one.start + one.period]
    copies = [word for number in range(times) for word in (str(number + 1), *phrase)]
    return [*one.words[: one.start], *copies]


def ids_of(words: Sequence[str], known: dict[str, int]) -> list[int]:
    return [known.setdefault(word, len(known)) for word in words]


# ---------------------------------------------------------------- measures and the queue


def detected(seed: int) -> Figures:
    """Whether loops are found where they were planted, and copies told from loops."""
    known: dict[str, int] = {}
    source = generator(seed, "handbook", "planted", "loops")
    people = [ids_of(words, known) for words in passages(seed)]
    planted = [looped(words, source) for words in passages(seed)]
    looping = [ids_of(one.words, known) for one in planted]
    found = [loop_in(ids) for ids in looping]
    missed = sum(loop is None for loop in found)
    gaps = [
        max(abs(loop.start - one.start), abs(loop.period - one.period))
        for loop, one in zip(found, planted, strict=True)
        if loop is not None
    ]
    halves = [(ids[: WORDS // 2], ids[WORDS // 2 :]) for ids in people]
    return {
        "loops_missed": float(missed),
        "loop_gap": float(max(gaps, default=WORDS)),
        "people_looping": sum(loop_in(ids) is not None for ids in people) / len(people),
        "people_rep_4": sum(repetition(ids) for ids in people) / len(people),
        # an answer that is its prompt over again, and one that loops over words the prompt does not have
        "copy_copied": min(copied(prompt, prompt) for prompt, _ in halves),
        "copy_rep_4": sum(repetition(prompt) for prompt, _ in halves) / len(halves),
        "copy_looping": float(sum(loop_in(prompt) is not None for prompt, _ in halves)),
        "loop_copied": sum(
            copied(ids[one.start :], prompt)
            for ids, one, (prompt, _) in zip(looping, planted, halves[1:] + halves[:1], strict=True)
        )
        / len(looping),
        "loop_rep_4": sum(repetition(ids) for ids in looping) / len(looping),
    }


def queued(ids: Sequence[int], looping: Looping | None = None) -> bool:
    """Whether a person should look at this text."""
    return repetition(ids) > QUEUED or loop_in(ids, looping) is not None


def queue(seed: int) -> Figures:
    """Precision and recall of the queue, as many texts of people as loops; and what it finds of loops that count."""
    known: dict[str, int] = {}
    source = generator(seed, "handbook", "planted", "queue")
    texts = passages(seed, 2 * TEXTS)
    people, spoilt = texts[:TEXTS], [looped(words, source) for words in texts[TEXTS:]]
    false = sum(queued(ids_of(words, known)) for words in people)
    true = sum(queued(ids_of(one.words, known)) for one in spoilt)
    near = sum(queued(ids_of(nearly(one), known)) for one in spoilt)
    strict = sum(loop_in(ids_of(nearly(one), known)) is not None for one in spoilt)
    return {
        "queue_precision": true / max(1, true + false),
        "queue_recall": true / TEXTS,
        "queue_recall_near": near / TEXTS,
        "watch_recall_near": strict / TEXTS,
        "queue_false": false / TEXTS,
    }


# ---------------------------------------------------------------- the filter


@cache
def blocks(book: str) -> tuple[tuple[str, ...], ...]:
    """Stretches of a book that many sentences long, evenly over it."""
    text = bundled.path(book).read_text(encoding="utf-8")
    lines = [line.split() for line in re.split(r"\n\s*\n" if book == "moby_dick" else r"\n", text)]
    joined = "\n".join(" ".join(words) for words in lines if words)
    step = len(joined) // BLOCKS
    return tuple(tuple(sentences(joined[at : at + step])[1 : SENTENCES + 1]) for at in range(0, step * BLOCKS, step))


def filtered(seed: int) -> Figures:
    """The filter by words on both books: what it takes from people, and what it finds of planted repeats, exact ones
    and those with one word changed."""
    found: Figures = {}
    for book in BOOKS:
        source, rule = generator(seed, "handbook", "planted", book), PostFilter()
        counts = {"sentences": 0, "taken": 0, "planted": 0, "exact": 0, "near": 0}
        for parts in blocks(book):
            taken = sum(earlier is not None for earlier in rule.repeats(parts))
            long = [part for part in parts if len(words_of(part)) >= SHORT]
            counts["sentences"] += len(parts)
            counts["taken"] += taken
            if not long:
                continue
            again = long[int(torch.randint(len(long), (), generator=source))]
            counts["planted"] += 1
            counts["exact"] += rule.repeats([*parts, again])[-1] is not None
            counts["near"] += rule.repeats([*parts, changed(again, STRANGERS[book], source)])[-1] is not None
        found |= {
            f"{book}_taken": counts["taken"] / counts["sentences"],
            f"{book}_exact": counts["exact"] / counts["planted"],
            f"{book}_near": counts["near"] / counts["planted"],
            # of what is taken where each block has one planted repeat, the share that was planted
            f"{book}_precision": counts["exact"] / (counts["exact"] + counts["taken"]),
        }
    return found | {
        f"filter_{name}_worst": worst(found[f"{book}_{name}"] for book in BOOKS)
        for name, worst in (("taken", max), ("exact", min), ("near", min), ("precision", min))
    }


def changed(sentence: str, stranger: str, source: torch.Generator) -> str:
    """The sentence with one word exchanged for one that the book has not."""
    spoken = words_of(sentence)
    spoken[int(torch.randint(len(spoken), (), generator=source))] = stranger
    return " ".join(spoken)
