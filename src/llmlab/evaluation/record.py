"""What a run's folder says about itself: the only source of the report. Missing and broken pieces are left out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from llmlab.errors import InputError

ORDER = ("text", "tokenizer", "rope", "pretrain", "sft", "reward", "dpo", "ppo", "quantize", "evaluate")


class Measured(NamedTuple):
    """A figure, with its interval and number of items where they are known."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None


@dataclass(frozen=True)
class StageRecord:
    """One stage: its manifest (empty while it is not finished) and the rows of its figures.jsonl."""

    name: str
    manifest: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]

    @property
    def finished(self) -> bool:
        return bool(self.manifest)

    @property
    def figures(self) -> Mapping[str, Any]:
        found = self.manifest.get("figures")
        return found if isinstance(found, dict) else {}

    def number(self, name: str) -> float | None:
        """A number of the manifest itself, such as `seconds`."""
        return number(self.manifest.get(name))

    def curve(self, name: str) -> tuple[list[float], list[float]]:
        """Steps and values of one figure."""
        points = [(number(row.get("step")), number(row.get(name))) for row in self.rows]
        told = [(step, value) for step, value in points if step is not None and value is not None]
        return [step for step, _ in told], [value for _, value in told]

    def names(self) -> list[str]:
        """The figures that have a curve, in the order in which they first appear."""
        return [name for name in dict.fromkeys(key for row in self.rows for key in row) if name != "step"]


@dataclass(frozen=True)
class RunRecord:
    """A run: its recipe, its stages in order, the funnel of its text, and what was predicted of it before."""

    name: str
    recipe: Mapping[str, Any]
    recipe_text: str
    stages: Mapping[str, StageRecord]
    funnel: Mapping[str, Any] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)

    def predicted(self, stage: str, name: str) -> float | None:
        """A number that the plan gives for a stage, None where there was none."""
        rows = self.plan.get("stages")
        found = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        return next((number(row.get(name)) for row in found if row.get("name") == stage), None)

    def figures(self, stage: str) -> Mapping[str, Any]:
        record = self.stages.get(stage)
        return {} if record is None else record.figures


def read_run(folder: Path) -> RunRecord:
    """Read a run's folder. InputError where there is no stage and no recipe in it."""
    text = _text(folder / "recipe.yaml")
    stages = {record.name: record for record in _stages(folder)}
    if not text and not stages:
        raise InputError(str(folder), "is no run's folder", "it holds no recipe.yaml and no stage")
    try:
        recipe = yaml.safe_load(text)
    except yaml.YAMLError:
        recipe = None
    recipe = recipe if isinstance(recipe, dict) else {}
    name = str(recipe.get("name") or folder.resolve().name)
    funnel, plan = _object(folder / "text" / "funnel.json"), _object(folder / "plan.json")
    return RunRecord(name, recipe, text, stages, funnel, plan)


def _stages(folder: Path) -> Iterator[StageRecord]:
    there = {entry.name: entry for entry in folder.iterdir() if entry.is_dir()} if folder.is_dir() else {}
    known = [name for name in ORDER if name in there]
    # A stage that was redone left its old folder as NAME.old-1.
    others = sorted(name for name in there if name not in ORDER and "." not in name)
    for name in known + others:
        manifest, rows = _object(there[name] / "manifest.json"), list(_rows(there[name] / "figures.jsonl"))
        if manifest or rows:
            yield StageRecord(name, manifest, rows)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    for line in _text(path).splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # the last line of a killed stage may be cut
            continue
        if isinstance(row, dict):
            yield row


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_text(path) or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


# ---------------------------------------------------------------- looking into figures


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def measured(figures: Mapping[str, Any], *names: str) -> Measured | None:
    """The first of these figures that is there, at any depth (outer ones first), with its interval.

    A figure is a number, or an object with `value` and `interval`; a number's interval may stand beside it as
    `NAME_interval`.
    """
    for name in names:
        for owner in _objects(figures):
            found = owner.get(name)
            value = number(found.get("value")) if isinstance(found, dict) else number(found)
            if value is None:
                continue
            beside = found if isinstance(found, dict) else {}
            low, high = interval(beside.get("interval", owner.get(f"{name}_interval")))
            count = number(beside.get("n", owner.get("n")))
            return Measured(value, low, high, None if count is None else int(count))
    return None


def interval(value: Any) -> tuple[float | None, float | None]:
    if isinstance(value, list | tuple) and len(value) == 2:
        low, high = number(value[0]), number(value[1])
        if low is not None and high is not None:
            return low, high
    return None, None


def _objects(figures: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The object and those inside it, level by level."""
    level: list[Mapping[str, Any]] = [figures]
    while level:
        yield from level
        level = [inner for owner in level for inner in owner.values() if isinstance(inner, dict)]


def scalars(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every plain value of nested figures as (path, text); lists are left to their own tables."""
    for name, value in figures.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict):
            yield from scalars(value, f"{path} › ")
        elif isinstance(value, bool | str) or value is None:
            yield path, str(value)
        elif isinstance(value, int | float):
            yield path, f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
        elif isinstance(value, list) and len(value) == 2 and all(number(v) is not None for v in value):
            yield path, f"[{value[0]:.4g}, {value[1]:.4g}]"
