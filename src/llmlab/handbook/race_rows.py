"""A race's record as rows to show: each arm's mean and interval, and how far they are from a baseline's."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from llmlab.handbook.question import Text
from llmlab.handbook.raced import known, race

Kind = Literal["better", "worse", "not", "fixed"]
Side = Literal["lower", "higher"]


class Cell(NamedTuple):
    """One arm's figure. Intervals are Student's, so half their width says both ends; infinite for a single seed.

    `kind` is what the interval of the difference says; `fixed` where no seed changes anything or no side is better. The
    baseline itself has no difference.
    """

    by_seed: tuple[float, ...]
    mean: float
    half: float
    difference: float | None = None
    difference_half: float = math.inf
    kind: Kind = "fixed"

    @property
    def ends(self) -> tuple[float, float]:
        """The interval; the mean alone where one seed gives none."""
        half = self.half if math.isfinite(self.half) else 0.0
        return self.mean - half, self.mean + half


class Column(NamedTuple):
    """A measure, what stands above it, and which side is better where the measure is one of llmlab's."""

    measure: str
    head: str
    unit: str
    better: Side | None


@dataclass(frozen=True)
class Block:
    """Measures side by side: all plain ones (no `family`), or one at several lengths, with heads `1x`, `2x`, ...

    `rows` hold a cell a column, the best first by the first column, None where the arm has no such figure; `reasons`
    say why, for arms without any figure too. `baseline` is the race's first arm that has them all, None where the arms
    are no rivals or there is but one; `arms` are all of the race in its own order, so that an arm has one colour in
    every picture.
    """

    family: str
    columns: tuple[Column, ...]
    rows: Mapping[str, Sequence[Cell | None]]
    reasons: Mapping[str, str]
    baseline: str | None
    arms: tuple[str, ...]

    def ranked(self, column: int) -> list[tuple[str, Cell]]:
        """The arms that have this figure, the best first (the smallest where no side is)."""
        found = [(arm, cell) for arm, cells in self.rows.items() if (cell := cells[column]) is not None]
        return sorted(found, key=lambda one: one[1].mean, reverse=self.columns[column].better == "higher")

    def varies(self, column: int) -> bool:
        """Does a seed change anything? Parameters, for one, it does not."""
        return any(len(set(cell.by_seed)) > 1 for _, cell in self.ranked(column))


def title_of(record: Mapping[str, Any]) -> Text:
    """What the race is called; its file's name where no such race is defined any more."""
    name = str(record["name"])
    return race(name).title if name in known() else Text(name, name)


def listed(record: Mapping[str, Any]) -> bool:
    """Whether the arms stand under the question one by one; not where it shows their figures in tables of its own."""
    name = str(record["name"])
    return race(name).listed if name in known() else True


def blocks(record: Mapping[str, Any]) -> list[Block]:
    """The plain measures first, then each measure that was taken at several lengths."""
    found: dict[str, list[tuple[int, str]]] = {}
    for measure in record["rows"]:
        if match := re.fullmatch(r"(.+)@(\d+)x", measure):
            found.setdefault(match[1], []).append((int(match[2]), measure))
    families = {name: sorted(lengths) for name, lengths in found.items() if len(lengths) > 1}
    taken = {measure for lengths in families.values() for _, measure in lengths}
    plain = [(measure, measure) for measure in record["rows"] if measure not in taken]
    made = [_block(record, "", plain)] if plain else []
    for name, lengths in families.items():
        made.append(_block(record, name, [(measure, f"{times}x") for times, measure in lengths]))
    return made


def _block(record: Mapping[str, Any], family: str, heads: Sequence[tuple[str, str]]) -> Block:
    from llmlab.evaluation.measures import MEASURES

    columns = tuple(
        Column(name, head, MEASURES[name].unit, MEASURES[name].better)
        if name in MEASURES
        else Column(name, head, "", None)
        for name, head in heads
    )
    numbers: dict[str, list[tuple[float, ...] | None]] = {}
    reasons: dict[str, str] = {}
    for arm in record["arms"]:
        raw = [record["rows"][column.measure][arm] for column in columns]
        failed = [next((value for value in row if isinstance(value, str)), None) for row in raw]
        numbers[arm] = [None if why else tuple(map(float, row)) for row, why in zip(raw, failed, strict=True)]
        if any(failed):
            reasons[arm] = next(why for why in failed if why)
    whole = [arm for arm, found in numbers.items() if None not in found]
    baseline = whole[0] if whole and len(numbers) > 1 and listed(record) else None
    beside = numbers[baseline] if baseline is not None else [None] * len(columns)
    rows = {
        arm: [
            None if own is None else _cell(own, None if arm == baseline else other, column.better)
            for own, other, column in zip(found, beside, columns, strict=True)
        ]
        for arm, found in numbers.items()
        if any(own is not None for own in found)
    }
    unsorted = Block(family, columns, rows, reasons, baseline, tuple(numbers))
    order = [arm for arm, _ in unsorted.ranked(0)]
    ordered = {arm: rows[arm] for arm in dict.fromkeys([*order, *rows])}
    return replace(unsorted, rows=ordered)


def _cell(own: Sequence[float], other: Sequence[float] | None, better: Side | None) -> Cell:
    from llmlab.evaluation import statistics

    here = statistics.mean(own)
    half = here.high - here.value
    if other is None:
        return Cell(tuple(own), here.value, half)
    found = statistics.mean([mine - theirs for mine, theirs in zip(own, other, strict=True)])
    kind: Kind = "fixed"
    if better is not None and found.high > found.low:
        told = statistics.verdict(found, better)
        kind = "not" if told == "not told apart" else told
    return Cell(tuple(own), here.value, half, found.value, found.high - found.value, kind)


# ---------------------------------------------------------------- numbers


def value(cell: Cell) -> str:
    """`2.201 ±0.011`, half of the 95 % interval."""
    return _with_interval(cell.mean, cell.half, "", cell.mean)


def difference(cell: Cell) -> str:
    """`+0.012 ±0.004`, with the places of the figure itself; empty at the baseline and where there is none."""
    return "" if cell.difference is None else _with_interval(cell.difference, cell.difference_half, "+", cell.mean)


def number(value: float, sign: str = "", beside: float | None = None) -> str:
    """With as many places as the size of the figure `beside` which it stands, by default its own, leaves telling."""
    size = abs(value if beside is None else beside)
    places = 0 if size >= 1e4 else 1 if size >= 100 else 2 if size >= 10 else 3
    return f"{value:{sign},.{places}f}".replace("-", "\N{MINUS SIGN}")


def _with_interval(value: float, half: float, sign: str, beside: float) -> str:
    """The figure alone where no seed changes anything, or there is but one."""
    told = number(value, sign, beside)
    return told if half == 0 or not math.isfinite(half) else f"{told} ±{number(half, '', beside)}"
