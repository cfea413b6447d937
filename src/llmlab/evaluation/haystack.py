"""Facts hidden in a long text and asked for at its end (the needle in a haystack, Kamradt 2023; several facts in one
text as RULER's keys, Hsieh et al. 2024, arXiv 2404.06654).

A fact is a sentence of made-up content: the code of a place. It is asked as text that the model goes on with, through
no template, so that base and chat models are asked alike. One reading of the text serves all of its questions: each is
read behind it, over the one before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from llmlab.data.batch import Ids
from llmlab.inference.engine import without_dropout
from llmlab.inference.pages import PAGE
from llmlab.inference.plain_step import PlainModel, unpaged
from llmlab.inference.stepper import Piece, Stepper
from llmlab.model.places import Places
from llmlab.model.transformer import Transformer
from llmlab.runtime import derive
from llmlab.tokenization.tokenizer import Tokenizer

PLACES = (
    *("Aldermoor", "Brackenfell", "Corvick", "Dunmarsh", "Ellerby", "Farrowdale", "Gorsley", "Hathersedge"),
    *("Inverlane", "Jarrowby", "Kestrelmere", "Lorriston"),
)
DIGITS = 5
CHUNK = 512  # tokens of a text that are read at a time


@dataclass(frozen=True)
class Fact:
    """A place, its code, and where in the text it stands: 0 its beginning, 1 its end."""

    place: str
    code: str
    depth: float

    def sentence(self) -> str:
        return f"\nThe code of {self.place} is {self.code}.\n"

    def question(self) -> str:
        return f"\n\nWhat is the code of {self.place}? The code of {self.place} is"


@dataclass(frozen=True)
class Asked:
    """Whether the likeliest continuation of the question is the code, to its last token, and whether of several codes
    the right one is the likeliest."""

    fact: Fact
    recalled: bool
    chosen: bool


def facts(depths: Sequence[float], seed: int) -> list[Fact]:
    """A fact at each depth, no two of one place or code."""
    first = derive(seed, "places") % len(PLACES)
    codes = _codes(len(depths), derive(seed, "codes"))
    return [
        Fact(PLACES[(first + number) % len(PLACES)], code, depth)
        for number, (depth, code) in enumerate(zip(depths, codes, strict=True))
    ]


def _codes(count: int, seed: int, other_than: Sequence[str] = ()) -> list[str]:
    found: list[str] = []
    number = 0
    while len(found) < count:
        code = str(10 ** (DIGITS - 1) + derive(seed, "code", number) % (9 * 10 ** (DIGITS - 1)))
        if code not in found and code not in other_than:
            found.append(code)
        number += 1
    return found


def haystack(text: Ids, hidden: Sequence[Fact], tokenizer: Tokenizer, room: int) -> list[int]:
    """The first tokens of a text with the facts among them, `room` tokens in all. A fact stands at the end of a
    sentence, where there is one in the last tokens before its depth."""
    begin = tokenizer.prompt("")
    said = [tokenizer.encode(fact.sentence()) for fact in hidden]
    hay = list(text[: room - len(begin) - sum(map(len, said))])
    ends = np.array([tokenizer.token_bytes(id).rstrip().endswith((b".", b"!", b"?")) for id in hay], bool)
    made, at = list(begin), 0
    for fact, sentence in sorted(zip(hidden, said, strict=True), key=lambda pair: pair[0].depth):
        place = _end_before(ends, round(fact.depth * len(hay)), at)
        made += [*hay[at:place], *sentence]
        at = place
    return made + hay[at:]


def _end_before(ends: np.ndarray, place: int, least: int) -> int:
    """The end of the last sentence among the 64 tokens before this place, else the place itself."""
    if place in (0, len(ends)):
        return max(place, least)
    near = np.flatnonzero(ends[max(least, place - 64) : place])
    return int(max(least, place - 64) + near[-1] + 1) if len(near) else place


# ---------------------------------------------------------------- reading and asking


class Reader(Protocol):
    """A text that was read, and is asked how it goes on."""

    def after(self, ids: Sequence[int], last: int) -> Tensor:
        """float32 [last, V]: what follows each of the last so many of these ids, which stand behind the text."""


class Paged:
    """The text's keys are kept; what is asked is written behind them, over what was asked before."""

    def __init__(self, stepper: Stepper, text: Sequence[int], room: int) -> None:
        """`room`: tokens of the longest question."""
        self._stepper, self._length = stepper, len(text)
        self._pages = list(range(-(-(len(text) + room) // PAGE)))
        for page in self._pages:
            stepper.clear(page)
        for first in range(0, len(text), CHUNK):
            stepper.step([Piece(text[first : first + CHUNK], first, self._pages)], ())

    def after(self, ids: Sequence[int], last: int) -> Tensor:
        return self._stepper.step([Piece(ids, self._length, self._pages)], range(len(ids) - last, len(ids)))


class Whole:
    """Everything is read anew with each question: for models that keep no keys, or turn them anew."""

    def __init__(self, model: Transformer, text: Sequence[int]) -> None:
        self._model, self._text = model, list(text)

    @torch.inference_mode()
    def after(self, ids: Sequence[int], last: int) -> Tensor:
        ids_BT = torch.tensor([[*self._text, *ids]])
        hidden_BTD = self._model.hidden(ids_BT, Places.causal(*ids_BT.shape))
        return self._model.logits(hidden_BTD[0, -last:]).float()


@contextmanager
def reading(model: Transformer, text: Sequence[int], room: int) -> Iterator[Reader]:
    """The text as a model of ours has read it."""
    with without_dropout(model):
        if unpaged(model) is not None:
            yield Whole(model, text)
        else:
            yield Paged(PlainModel(model, -(-(len(text) + room) // PAGE)), text, room)


def ask(reader: Reader, fact: Fact, others: Sequence[str], tokenizer: Tokenizer) -> Asked:
    """Ask for a fact; `others` are codes that are wrong."""
    question = tokenizer.encode(fact.question())
    scores, recalled = [], False
    for code in (fact.code, *others):
        said = tokenizer.encode(f" {code}")
        logits_RV = reader.after([*question, *said[:-1]], len(said))
        said_R = torch.tensor(said)
        scores.append(float(logits_RV.log_softmax(-1)[torch.arange(len(said)), said_R].sum()))
        if code == fact.code:
            recalled = bool((logits_RV.argmax(-1) == said_R).all())
    return Asked(fact, recalled, all(scores[0] > other for other in scores[1:]))


def wrong_codes(fact: Fact, hidden: Sequence[Fact], count: int, seed: int) -> list[str]:
    """Codes to choose from beside the right one: those of the other facts of the text first, then some that no text
    has."""
    there = [other.code for other in hidden if other.code != fact.code][:count]
    return there + _codes(count - len(there), derive(seed, "unseen", fact.place), [fact.code, *there])
