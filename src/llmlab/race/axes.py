"""What a search draws from: a field and its law, and one value a trial.

path=a,b,c           one of these values, each as likely (YAML, as in --vary)
path=log(1e-4,1e-2)  a number whose logarithm is uniform
path=uniform(0,0.5)  a number, uniform
path=int(2,8)        a whole number, both ends included

A draw is keyed by (seed, trial, path) and by nothing else, so that another axis changes no other's values, and more
trials none of the earlier ones.
"""

from __future__ import annotations

import itertools
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import yaml

from llmlab.errors import InputError
from llmlab.race.arms import ASIDE, read_vary
from llmlab.runtime import generator

DIGITS = 4  # of a drawn number: what a person reads is what was trained with
_TRIES = 50  # draws a trial after which there is nothing new to draw


class Law(ABC):
    """How one field's values are drawn."""

    @abstractmethod
    def draw(self, seed: int, trial: int, path: str) -> Any:
        """The value of this trial."""


@dataclass(frozen=True)
class Choice(Law):
    """One of some values."""

    values: Sequence[Any]

    def draw(self, seed: int, trial: int, path: str) -> Any:
        return self.values[int(torch.randint(len(self.values), (), generator=_source(seed, trial, path)))]


@dataclass(frozen=True)
class Whole(Law):
    """A whole number from `low` to `high`, both included."""

    low: int
    high: int

    def draw(self, seed: int, trial: int, path: str) -> int:
        return int(torch.randint(self.low, self.high + 1, (), generator=_source(seed, trial, path)))


@dataclass(frozen=True)
class Span(Law):
    """A number between `low` and `high`, or one whose logarithm is uniform."""

    low: float
    high: float
    log: bool = False

    def draw(self, seed: int, trial: int, path: str) -> float:
        share = float(torch.rand((), dtype=torch.float64, generator=_source(seed, trial, path)))
        if self.log:
            value = math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + share * (self.high - self.low)
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)


def _source(seed: int, trial: int, path: str) -> torch.Generator:
    return generator(seed, "search", trial, path)


def read_over(texts: Sequence[str]) -> dict[str, Law]:
    """`path=law` of the command line. Errors: InputError naming the path and what is wrong with its law."""
    laws: dict[str, Law] = {}
    for text in texts:
        path, equals, told = text.partition("=")
        if not path or not equals:
            raise InputError("--over", f"{text!r} names no values", "write path=log(1e-4,1e-2) or path=a,b")
        if path in laws:
            raise InputError("--over", f"{path} is there twice", "write all its values in one")
        if path in ASIDE or path.split(".")[0] in ASIDE:
            raise InputError(f"--over {path}", "changes nothing that a search measures")
        found = re.fullmatch(r"(log|uniform|int)\((.*),(.*)\)", told.strip())
        laws[path] = _span(path, *found.groups()) if found else Choice(_values(text, path))
    if not laws:
        raise InputError(
            "--over", "names no field to search", "as in --over 'pretrain.training.optimizer.lr=log(1e-4,1e-2)'"
        )
    return laws


def _values(text: str, path: str) -> list[Any]:
    values = [_number(value) for value in read_vary([text])[path]]
    if not values:
        raise InputError(f"--over {path}", "has no values", f"write {path}=a,b or {path}=log(1e-4,1e-2)")
    return values


def _number(value: Any) -> Any:
    """YAML takes 1e-4 for a text, since it has no point."""
    try:
        return float(value) if isinstance(value, str) and value[:1] in "+-.0123456789" else value
    except ValueError:
        return value


def _span(path: str, kind: str, *ends: str) -> Law:
    place = f"--over {path}"
    try:
        low, high = (float(end) for end in ends)
    except ValueError:
        raise InputError(place, f"{kind}({','.join(ends)}) is no pair of numbers", f"as in {kind}(1,8)") from None
    if not (low < high and math.isfinite(high - low)):
        raise InputError(place, f"{low:g} to {high:g} is no span", "write the smaller end first")
    if kind == "log" and low <= 0:
        raise InputError(place, f"{low:g} has no logarithm", "both ends of log(...) lie above 0")
    if kind == "int":
        if low % 1 or high % 1:
            raise InputError(place, f"{low:g} and {high:g} are not both whole")
        return Whole(int(low), int(high))
    return Span(low, high, kind == "log")


def trials(laws: Mapping[str, Law], count: int | None, seed: int) -> list[dict[str, Any]]:
    """The values of each trial, no two alike. Without a count, every combination of values that are listed: a grid.

    Errors: InputError where a law has no list and no count is given, and where there are not so many combinations.
    """
    if count is None:
        lists = [law.values if isinstance(law, Choice) else None for law in laws.values()]
        if open_ended := next((path for path, values in zip(laws, lists, strict=True) if values is None), None):
            raise InputError("--trials", f"is missing: {open_ended} has no end of values", "as in --trials 16")
        return [dict(zip(laws, chosen, strict=True)) for chosen in itertools.product(*(v for v in lists if v))]
    if count < 1:
        raise InputError("--trials", f"{count} try nothing", "as in --trials 16")
    found: list[dict[str, Any]] = []
    for number in range(_TRIES * count):
        drawn = {path: law.draw(seed, number, path) for path, law in laws.items()}
        if drawn not in found:
            found.append(drawn)
        if len(found) == count:
            return found
    raise InputError("--trials", f"{count} are more than the {len(found)} combinations that --over gives")


def told(values: Mapping[str, Any]) -> str:
    """As one would write it on a command line."""
    return " ".join(f"{path}={_written(value)}" for path, value in values.items())


def _written(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("...\n").strip()
