"""What a handbook question is: claims, checks set beforehand, and a verdict that is a pure function of the figures.

A question lives in its own file `qNN_word.py`, found by its name, and ends with `QUESTION = Question(...)`. It says
what the handbook holds, what is right and by which papers, measures figures, and names for each claim the checks that
decide it. Nothing but the figures and the thresholds in that file enters the verdict.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import yaml

from llmlab.errors import InputError

if TYPE_CHECKING:  # the list of questions is printed without importing torch
    from llmlab.handbook.raced import Told
    from llmlab.stages import Session

HERE = Path(__file__).parent
NUMBERS = range(1, 55)

Language = Literal["en", "zh"]
Tier = Literal["formula", "seconds", "minutes", "full"]
Severity = Literal["W", "M", "I"]
Relation = Literal["<", "<=", ">", ">=", "=="]
Figures = dict[str, float]

TIER_LETTER: dict[Tier, str] = {"formula": "F", "seconds": "S", "minutes": "M", "full": "L"}


class Text(NamedTuple):
    """One thing said in English and in Chinese."""

    en: str
    zh: str

    def in_language(self, lang: Language) -> str:
        return self.zh if lang == "zh" else self.en


class Table(NamedTuple):
    """Figures side by side, shown below the evidence: heads of the columns, and rows whose first cell is a name.

    A cell is a number or a name that both languages share, or a `Text`.
    """

    title: Text
    heads: tuple[Text | str, ...]
    rows: tuple[tuple[Text | str, ...], ...]

    def in_language(self, lang: Language) -> list[list[str]]:
        """The heads and then the rows, as plain text."""
        lines = (self.heads, *self.rows)
        return [[cell.in_language(lang) if isinstance(cell, Text) else cell for cell in line] for line in lines]


class Verdict(StrEnum):
    """What a run may conclude, from the mildest to the gravest."""

    CONFIRMED = "CONFIRMED"  # the handbook's claim is reproduced
    PREDICTED_ONLY = "PREDICTED-ONLY"  # needs hardware or people that are not here
    CORRECTED = "CORRECTED"  # the claim is replaced by the right one; both are shown
    REFUTED = "REFUTED"  # the claim was tested and the result is opposite or null
    NOT_REPRODUCED = "NOT-REPRODUCED"  # the literature's correction (or our own control) did not show

    @property
    def gravity(self) -> int:
        return list(Verdict).index(self)


@dataclass(frozen=True)
class Check:
    """`figures[figure] relation threshold`, with what it asks in words. Not a number: not passed."""

    figure: str
    relation: Relation
    threshold: float
    en: str
    zh: str

    @property
    def asks(self) -> Text:
        return Text(self.en, self.zh)

    def passed(self, figures: Mapping[str, float]) -> bool:
        value = figures[self.figure]
        match self.relation:
            case "<":
                return value < self.threshold
            case "<=":
                return value <= self.threshold
            case ">":
                return value > self.threshold
            case ">=":
                return value >= self.threshold
            case "==":
                return value == self.threshold


@dataclass(frozen=True)
class Claim:
    """One statement of the handbook, the checks that decide it, and what it is called when all of them pass.

    `main` claims answer the question asked and make its verdict; an `aside` is a remark beside it, with a verdict of
    its own; a `control` is ours (our part agrees with its reference): when it fails, the run proves nothing.
    A confirmation that fails is a refutation; a correction or refutation that fails is NOT-REPRODUCED. A claim that
    rests on a `race` is left out while that race has no record.
    """

    name: str
    en: str
    zh: str
    checks: tuple[Check, ...]
    verdict: Verdict = Verdict.CONFIRMED
    kind: Literal["main", "aside", "control"] = "main"
    errors: tuple[str, ...] = ()
    race: str | None = None

    @property
    def said(self) -> Text:
        return Text(self.en, self.zh)

    def judged(self, figures: Mapping[str, float]) -> Verdict:
        if not all(math.isfinite(figures[check.figure]) for check in self.checks):
            return Verdict.NOT_REPRODUCED
        if all(check.passed(figures) for check in self.checks):
            return self.verdict
        if self.kind != "control" and self.verdict is Verdict.CONFIRMED:
            return Verdict.REFUTED
        return Verdict.NOT_REPRODUCED


@dataclass(frozen=True)
class Question:
    """A handbook question with its experiment.

    `errors` maps codes of the handbook's errors (E50.1: the first of question 50) to their severity: W wrong, M
    misleading, I incomplete. Those that no claim names are told in `on_paper` and stand on the papers alone.
    `tables` show the figures that the evidence speaks of, made from them like it.
    `settings` are the sizes that the figures depend on; raise `measure` when the way of measuring changes: both are in
    the key of the record. `uses` are the modules under test. `races` are trained beforehand (see `raced.py`), and
    `raced` takes figures from their records.
    """

    number: int
    tier: Tier
    claim: Text
    correction: Text
    run: Text
    papers: tuple[str, ...]
    errors: Mapping[str, Severity]
    claims: tuple[Claim, ...]
    figures: Callable[[Session], Figures]
    evidence: Callable[[Mapping[str, float]], Text]
    tables: Callable[[Mapping[str, float]], Sequence[Table]] = lambda figures: ()
    races: tuple[str, ...] = ()
    raced: Callable[[Mapping[str, Told]], Figures] | None = None
    on_paper: Mapping[str, Text] = field(default_factory=dict)
    uses: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    measure: int = 1

    def verdict(self, figures: Mapping[str, float]) -> Verdict:
        """The gravest verdict among the main claims, or NOT-REPRODUCED when a control fails. Pure."""
        deciding = [claim.judged(figures) for claim in self.decided(figures) if claim.kind != "aside"]
        return max(deciding, key=lambda verdict: verdict.gravity)

    def decided(self, figures: Mapping[str, float]) -> list[Claim]:
        """The claims that these figures decide: all but those of a race that was not run."""
        return [
            claim
            for claim in self.claims
            if claim.race is None or all(check.figure in figures for check in claim.checks)
        ]

    @property
    def checks(self) -> list[tuple[Claim, Check]]:
        return [(claim, check) for claim in self.claims for check in claim.checks]


class Asked(NamedTuple):
    """A line of `questions.yaml`: the question itself and the family of experiments that answers it."""

    number: int
    family: str
    text: Text


@cache
def asked() -> dict[int, Asked]:
    """All 54 questions by number."""
    rows = yaml.safe_load((HERE / "questions.yaml").read_text(encoding="utf-8"))
    return {row["n"]: Asked(row["n"], row["family"], Text(row["en"], row["zh"])) for row in rows}


def code_of(number: int) -> Path | None:
    """The file of a question's experiment, or None while it is not built."""
    found = sorted(HERE.glob(f"q{number:02d}_*.py"))
    return found[0] if found else None


def built() -> list[int]:
    """The numbers of the questions whose experiment exists."""
    return sorted(int(path.name[1:3]) for path in HERE.glob("q[0-9][0-9]_*.py"))


def numbered(number: int) -> int:
    """The number back, or an InputError when there is no such question."""
    if number not in NUMBERS:
        raise InputError("handbook", f"there is no question {number}", f"allowed: {NUMBERS[0]} to {NUMBERS[-1]}")
    return number


def load(number: int) -> Question:
    """Import the experiment of one question. InputError when it does not exist or is not built."""
    path = code_of(numbered(number))
    if path is None:
        available = ", ".join(map(str, built()))
        raise InputError("handbook", f"the experiment of question {number} is not built yet", f"built: {available}")
    question: Question = importlib.import_module(f"{__package__}.{path.stem}").QUESTION
    return question
