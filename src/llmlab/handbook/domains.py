"""Two domains beside the bundled English novel: short dialogues in today's English, on coding, science, money, trivia
and the like, and a classical Chinese novel. Of both there is little, next to what a general model has read.

One token is a piece of the general text's vocabulary, which spells Chinese byte by byte. T tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from llmlab.data import bundled
from llmlab.handbook.repeating_model import book
from llmlab.runtime import generator

DATA = 45_000  # tokens that there are to learn from at most; the general text has 525,000
VALIDATED = 2_048  # tokens that say when to stop; nothing is told of them
HELD_OUT = 24_000  # tokens at most that are tested on
QUESTIONS, CHOICES = 64, 4
BEFORE = 48  # tokens in front of what is asked for; where a question has fewer, it begins on a new line
RUN = 16  # tokens on end that test and training must not share
SHORT = 24  # tokens at most of an answer that is asked for
NAMES = ("玄德", "董卓", "曹操", "吕布", "袁绍", "张飞", "何进", "李儒")  # met most in the stretch that is learnt from


class Asked(NamedTuple):
    """The BEFORE tokens that stand before, and the ways to go on, the right one first."""

    before: list[int]
    choices: tuple[list[int], ...]


class Domain(NamedTuple):
    """Tokens to learn from, to stop by and to test on, and what its terms are asked with."""

    train_T: Tensor
    validated_T: Tensor
    held_T: Tensor
    asked: list[Asked]

    def part(self, share: float, seed: int) -> Tensor:
        """A stretch of the text to learn from, which begins anywhere."""
        size = round(share * len(self.train_T))
        source = generator(seed, "handbook", "domains", "part")
        start = int(torch.randint(len(self.train_T) - size + 1, (), generator=source))
        return self.train_T[start : start + size]


@cache
def dialogues() -> Domain:
    """The bundled English dialogues, each once, in an order of their own. What is held out has no question, and no RUN
    tokens on end, that are learnt from; asked are questions of trivia that are: which of four answers is theirs."""
    answers: dict[str, dict[str, str]] = {}  # by question: what is answered, and on what topic
    for line in bundled.path("chatterbot_en").read_text(encoding="utf-8").splitlines():
        told = json.loads(line)
        question, *others = (turn.strip() for turn in told["turns"])
        answers.setdefault(question, {})["\n".join(others)] = told["topic"]
    source = generator(0, "handbook", "domains", "dialogues")
    questions = list(answers)
    questions = [questions[place] for place in torch.randperm(len(questions), generator=source).tolist()]
    texts = [_ids("".join(f"{question}\n{answer}\n\n" for answer in answers[question])) for question in questions]
    learnt = _until(texts, DATA)
    known = {run for ids in texts[:learnt] for run in runs(ids)}
    texts[learnt:] = [ids for ids in texts[learnt:] if known.isdisjoint(runs(ids))]
    validated = learnt + _until(texts[learnt:], VALIDATED)
    facts = [
        (_ids(f"{question}\n"), _ids(answer))
        for question in questions[:learnt]
        for answer, topic in answers[question].items()
        if topic == "trivia"
    ]
    facts = [(question, answer) for question, answer in facts if len(answer) <= SHORT]
    asked = list[Asked]()
    for place in torch.randperm(len(facts), generator=source)[:QUESTIONS].tolist():
        before, right = facts[place]
        wrong = [answer for answer in map(list, dict.fromkeys(tuple(answer) for _, answer in facts)) if answer != right]
        chosen = torch.randperm(len(wrong), generator=source)[: CHOICES - 1].tolist()
        asked.append(
            Asked(_ids("\n") * (BEFORE - len(before)) + before[-BEFORE:], (right, *(wrong[other] for other in chosen)))
        )
    parts = texts[:learnt], texts[learnt:validated], texts[validated:]
    train_T, validated_T, held_T = (torch.tensor([id for ids in part for id in ids]) for part in parts)
    return Domain(train_T, validated_T, held_T, asked)


@cache
def classical_chinese() -> Domain:
    """The beginning of the bundled Chinese novel. Asked is who comes next, at places that are held out: four names,
    each of two characters."""
    text = bundled.path("sanguo_yanyi").read_text(encoding="utf-8")
    token_T = torch.tensor(_ids(text[: DATA + VALIDATED + HELD_OUT]))  # three tokens a character, so more than enough
    ends = DATA, DATA + VALIDATED, DATA + VALIDATED + HELD_OUT
    held = token_T[ends[1] : ends[2]].tolist()
    names = [_ids(name) for name in NAMES]
    size = len(names[0])
    found = [
        (place, names.index(held[place : place + size]))
        for place in range(BEFORE, len(held) - size)
        if held[place : place + size] in names
    ]
    source = generator(0, "handbook", "domains", "names")
    asked = list[Asked]()
    for place in torch.randperm(len(found), generator=source)[:QUESTIONS].tolist():
        at, right = found[place]
        others = [name for name in torch.randperm(len(names), generator=source).tolist() if name != right]
        choices = (names[right], *(names[other] for other in others[: CHOICES - 1]))
        asked.append(Asked(held[at - BEFORE : at], choices))
    return Domain(token_T[: ends[0]], token_T[ends[0] : ends[1]], token_T[ends[1] : ends[2]], asked)


DOMAINS = {"dialogues": dialogues, "classical Chinese": classical_chinese}


def runs(ids: list[int]) -> set[tuple[int, ...]]:
    """Every RUN tokens on end."""
    return {tuple(ids[start : start + RUN]) for start in range(len(ids) - RUN + 1)}


def _ids(text: str) -> list[int]:
    return book().tokenizer.encode(text)


def _until(texts: Sequence[list[int]], tokens: int) -> int:
    """How many of the texts make up so many tokens."""
    total = 0
    for place, ids in enumerate(texts):
        if total >= tokens:
            return place
        total += len(ids)
    return len(texts)
