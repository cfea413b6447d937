"""A needle in a haystack: which facts of a long text a model still finds, by where they stand and how long it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import Field, field_validator

from llmlab.errors import InputError
from llmlab.evaluation import haystack, statistics
from llmlab.evaluation.haystack import Asked, Fact
from llmlab.evaluation.reading import stretch, whole_text
from llmlab.evaluation.tasks import base
from llmlab.evaluation.tasks.base import Result, Subject, proportion
from llmlab.runtime import derive

LONGEST = 4096  # tokens that are read where no length is given
LEAST_HAY = 0.5  # share of a text that is no fact


class Reading(NamedTuple):
    """One text to read: so many tokens, the facts in it, and the seed of its place in the book."""

    length: int
    facts: list[Fact]
    seed: int


class Task(base.Task):
    """Codes recalled from a long text (the bundled book, or a file of your own), over length and depth."""

    kind: Literal["needle"] = "needle"
    lengths: tuple[int, ...] | None = Field(
        None,
        min_length=1,
        description="tokens of a whole prompt, past the context too; null: a quarter, half and all of the context, "
        f"at most {LONGEST}",
    )
    depths: tuple[float, ...] = Field(
        (0.0, 0.25, 0.5, 0.75, 1.0),
        min_length=1,
        max_length=len(haystack.PLACES),
        description="0 the beginning, 1 the end",
    )
    texts: int = Field(2, gt=0, description="how often each depth of each length is asked, every time of another text")
    planted: int = Field(5, gt=0, description="facts in one text at most; 1 is the test as it was first described")
    choices: int = Field(5, gt=1, description="codes to choose from; chance is one in so many")
    text: str = Field("text", description="column of the text, where the file is a table")

    @field_validator("depths")
    @classmethod
    def _within(cls, depths: tuple[float, ...]) -> tuple[float, ...]:
        if wrong := [depth for depth in depths if not 0 <= depth <= 1]:
            raise ValueError(f"{wrong[0]} is no depth: 0 is the beginning, 1 the end")
        return tuple(sorted(set(depths)))

    def run(self, subject: Subject) -> list[Result]:
        tokenizer, model = subject.tokenizer, subject.bundle.model
        book = whole_text(self.path, self.text)
        found: list[tuple[int, Asked]] = []
        for length, facts, seed in self._readings(subject):
            room = self._room(subject, facts)
            hay = haystack.haystack(
                stretch(book, tokenizer, length, seed, "task needle: lengths"), facts, tokenizer, length - room
            )
            left = len(facts) if self.limit is None else self.limit - len(found)
            with haystack.reading(model, hay, room) as reader:
                for fact in facts[:left]:
                    others = haystack.wrong_codes(fact, facts, self.choices - 1, seed)
                    found.append((length, haystack.ask(reader, fact, others, tokenizer)))
            if self.limit is not None and len(found) >= self.limit:
                break
        cells = _cells(found)
        details = {"cells": cells, "table": table(cells)}
        return [
            proportion("needle", "recalled", [asked.recalled for _, asked in found], **details),
            proportion("needle", "chosen", [asked.chosen for _, asked in found], chance=1 / self.choices),
        ]

    def _readings(self, subject: Subject) -> Iterator[Reading]:
        """Lengths outermost, then texts; the facts of a text as many as fit, those of one text far apart."""
        for length in self._lengths(subject):
            for number in range(self.texts):
                seed = derive(subject.seed, "needle", length, number)
                facts = haystack.facts(self.depths, seed)
                groups = -(-len(facts) // self._together(subject, facts, length))
                for group in range(groups):
                    yield Reading(length, facts[group::groups], derive(seed, "text", group))

    def _lengths(self, subject: Subject) -> list[int]:
        longest = min(subject.bundle.architecture.context, LONGEST)
        asked = self.lengths or (longest // 4, longest // 2, longest)
        facts = haystack.facts(self.depths, 0)
        fit = [length for length in sorted(set(asked)) if self._together(subject, facts, length)]
        if not fit or (self.lengths is not None and len(fit) < len(set(asked))):
            short = next(length for length in sorted(set(asked)) if length not in fit)
            problem = f"{short} tokens are too few for a text with a fact in it and a question"
            raise InputError("task needle: lengths", problem, f"about {8 * self._room(subject, facts)} are enough")
        return fit

    def _together(self, subject: Subject, facts: Sequence[Fact], length: int) -> int:
        """How many facts a text of this length may hold; 0: none."""
        widest = max(len(subject.tokenizer.encode(fact.sentence())) for fact in facts)
        return min(self.planted, max(0, int((length - self._room(subject, facts)) * (1 - LEAST_HAY) // widest)))

    def _room(self, subject: Subject, facts: Sequence[Fact]) -> int:
        """Tokens of the longest question with its answer."""
        encode = subject.tokenizer.encode
        return max(len(encode(fact.question())) + len(encode(f" {fact.code}")) for fact in facts) + haystack.DIGITS


def _cells(found: Sequence[tuple[int, Asked]]) -> list[dict[str, Any]]:
    """What was found of each length and depth, with Wilson's interval."""
    alike: dict[tuple[int, float], list[Asked]] = {}
    for length, asked in found:
        alike.setdefault((length, asked.fact.depth), []).append(asked)
    cells = []
    for (length, depth), group in sorted(alike.items()):
        recalled = statistics.wilson(sum(asked.recalled for asked in group), len(group))
        chosen = sum(asked.chosen for asked in group) / len(group)
        cells.append(
            {
                "length": length,
                "depth": depth,
                "recalled": recalled.value,
                "interval": recalled.interval,
                "chosen": chosen,
                "n": len(group),
            }
        )
    return cells


def table(cells: Sequence[dict[str, Any]]) -> list[str]:
    """Lengths down, depths across: the share recalled, and in brackets the share chosen."""
    depths = sorted({cell["depth"] for cell in cells})
    lines = ["recalled (chosen)" + "".join(f"{f'depth {depth:g}':>14}" for depth in depths)]
    for length in sorted({cell["length"] for cell in cells}):
        row = {cell["depth"]: cell for cell in cells if cell["length"] == length}
        told = [f"{row[d]['recalled']:.0%} ({row[d]['chosen']:.0%})" if d in row else "" for d in depths]
        lines.append(f"{length:>10} tokens" + "".join(f"{cell:>14}" for cell in told))
    return lines
