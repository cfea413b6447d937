"""Two small labelled tasks for question 9: what a text is about, and of what kind a name in it is.

`topics`: opening lines of chatterbot's English dialogues, which people filed under topics: trivia, programming, or
feelings (psychology, emotion, AI). `entities`: names in sentences of a whaling log, to be told persons, places or
ships. These are made by code, since a test of reading needs names that say nothing by themselves, so that only the
words around tell: of the two names of a sentence the first is told by what follows it, the second by what comes before.
All is in small letters.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple, TypeVar

import torch

from llmlab.data import bundled
from llmlab.runtime import generator

TOPICS = {"trivia": ("trivia",), "programming": ("coding",), "feelings": ("psychology", "emotion", "ai")}
LABELS = {"topics": (10, 100), "entities": (10, 100, 1000)}  # there are 408 lines of these topics beside the tested
TESTED = {"topics": 120, "entities": 300}
UNLABELLED = 4000  # sentences of the log to pretrain on

FIRST = (  # persons, places, ships: what follows the first name
    (
        *("lit a pipe", "laughed aloud", "sang all night", "spoke of his wife", "wept like a child"),
        *("sharpened his knife", "told us a story", "fell asleep at last"),
    ),
    (
        *("lies far to the north", "has a deep harbour", "was still in fog", "is full of gulls"),
        *("has no fresh water", "was seen on the horizon", "lies under the snow", "is but sand and rock"),
    ),
    (
        *("lost her mast", "took on water", "struck her topsails", "carried much oil"),
        *("rolled on her side", "was copper below the line", "turned her bow to the wind", "dragged her anchor"),
    ),
)
LAST = (  # what comes before the second
    (
        *("we gave the rum to", "the mate was angry with", "the cook shouted at", "a tooth was pulled from"),
        *("the crew buried poor", "nobody could wake", "the boy was brother to", "we played cards with"),
    ),
    (
        *("we sailed for", "the boats came home from", "they wintered in", "the road leads to"),
        *("the chart does not show", "he was born in", "we bought bread in", "it is ten leagues to"),
    ),
    (
        *("the gale sank", "all hands went aboard", "we mended the hull of", "the captain took command of"),
        *("a whale rammed", "the rats left", "they scraped the keel of", "the owners sold"),
    ),
)
LINKS = ("while", "and", "before", "when", "but")
T = TypeVar("T")


class Example(NamedTuple):
    """A text, or with `word` a word in the middle of one, and its class."""

    before: str
    word: str
    after: str
    label: int


class Task(NamedTuple):
    """`train` is in an order in which any beginning of ten or more has all classes."""

    train: list[Example]
    test: list[Example]
    classes: int


def task(name: str, seed: int) -> Task:
    return topics(seed) if name == "topics" else entities(seed)


# ---------------------------------------------------------------- topics


@cache
def _openings() -> tuple[Example, ...]:
    rows = map(json.loads, bundled.path("chatterbot_en").read_text(encoding="utf-8").splitlines())
    classes = {topic: label for label, topics in enumerate(TOPICS.values()) for topic in topics}
    found = {row["turns"][0].lower(): classes[row["topic"]] for row in rows if row["topic"] in classes}
    return tuple(Example(text, "", "", label) for text, label in sorted(found.items()))


def topics(seed: int) -> Task:
    """As many of each topic in what is tested; the labels come as the topics are."""
    mixed = _mixed(_openings(), seed, "topics")
    each = TESTED["topics"] // len(TOPICS)
    test = [one for label in range(len(TOPICS)) for one in [e for e in mixed if e.label == label][:each]]
    tested = set(test)
    return Task(_begun([one for one in mixed if one not in tested], len(TOPICS)), test, len(TOPICS))


def replies() -> list[str]:
    """Everything in the dialogues but their opening lines, as text to pretrain on."""
    rows = map(json.loads, bundled.path("chatterbot_en").read_text(encoding="utf-8").splitlines())
    opening = {one.before for one in _openings()}
    lines = dict.fromkeys(turn.lower() for row in rows for turn in row["turns"][1:])
    return [line for line in lines if line not in opening]


# ---------------------------------------------------------------- entities


def sentences(count: int, seed: int, *purpose: object) -> list[tuple[Example, Example]]:
    """Sentences of the log, each as its two names in it. A name is drawn
    without regard to its kind."""
    source = generator(seed, *purpose)

    def one_of(items: Sequence[T]) -> T:
        return items[int(torch.randint(len(items), (), generator=source))]

    def name() -> str:
        size = 2 + int(torch.randint(2, (), generator=source))
        return "".join(one_of("bdfgklmnprstvz") + one_of("aeiou") for _ in range(size)) + one_of("nrsk")

    found = []
    for _ in range(count):
        kind, other = (int(torch.randint(len(FIRST), (), generator=source)) for _ in range(2))
        who, whom, says = name(), name(), one_of(FIRST[kind])
        leads = f"{one_of(LINKS)} {one_of(LAST[other])}"
        found.append(
            (Example("", who, f" {says} {leads} {whom}.", kind), Example(f"{who} {says} {leads}", whom, ".", other))
        )
    return found


def entities(seed: int) -> Task:
    """Each sentence asks for one of its two names, in turn."""
    drawn = sentences(max(LABELS["entities"]) + TESTED["entities"], seed, "handbook", "entities", "labelled")
    asked = [pair[number % 2] for number, pair in enumerate(drawn)]
    cut = max(LABELS["entities"])
    return Task(_begun(asked[:cut], len(FIRST)), asked[cut:], len(FIRST))


def log() -> list[str]:
    """Sentences without labels, to pretrain on."""
    drawn = sentences(UNLABELLED, 0, "handbook", "entities", "unlabelled")
    return [f"{first.word}{first.after}" for first, _ in drawn]


# ---------------------------------------------------------------- draws


def _mixed(items: Sequence[T], seed: int, *purpose: object) -> list[T]:
    order = torch.randperm(len(items), generator=generator(seed, "handbook", "label tasks", *purpose))
    return [items[place] for place in order.tolist()]


def _begun(examples: Sequence[Example], classes: int) -> list[Example]:
    """The same, two of each class first, the rest mixed as evenly as they are many."""
    by_class = [[one for one in examples if one.label == label] for label in range(classes)]
    begin = [one for pair in zip(*(some[:2] for some in by_class), strict=True) for one in pair]
    rest = [some[2:] for some in by_class]
    total = sum(map(len, rest))
    places = [((n + 0.5) * total / len(some), label, n) for label, some in enumerate(rest) for n in range(len(some))]
    return begin + [rest[label][n] for _, label, n in sorted(places)]
