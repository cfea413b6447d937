"""Runs listed and set beside each other, from their folders alone; nothing is written into them.

A folder that is broken or half-way is a row like any other, with what is wrong or missing in its `state`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from llmlab.errors import InputError, unknown
from llmlab.evaluation import findings
from llmlab.evaluation.record import ORDER, RunRecord, StageRecord, number, read_run

DEPTH = 3  # folders below a named one in which runs are looked for: races/NAME/arms/HASH
_NAMES = ("name", "seed", "device", "compare", "track")  # what two runs of one recipe may differ in
_COLUMNS = ("name", "date", "seconds", "bytes", "state", "recipe")
_BROKEN = "broken"


@dataclass(frozen=True)
class Row:
    """One run. `figures` are those of held-out data of each finished stage, as `stage.figure`."""

    folder: Path
    record: RunRecord
    state: str  # finished, or what is missing or wrong
    recipe: str  # the beginning of a hash: equal where all but names and seed is
    done: tuple[str, ...]
    date: str  # when the newest stage was finished, local time; empty where none was
    seconds: float
    bytes: int
    figures: Mapping[str, float]

    def json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder), "name": self.record.name, "seed": self.record.recipe.get("seed"),
            "recipe": self.recipe, "state": self.state, "stages": list(self.done), "date": self.date or None,
            "seconds": round(self.seconds, 3), "bytes": self.bytes, "figures": dict(self.figures),
        }  # fmt: skip


# ---------------------------------------------------------------- finding and reading


def is_run(folder: Path) -> bool:
    """Whether a run was begun here: its recipe, or a stage."""
    return (folder / "recipe.yaml").is_file() or any((folder / stage / "started.json").is_file() for stage in ORDER)


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """The run folders that are named or lie below what is named, each once, in the order of their names.

    Errors: InputError for a folder that is not there.
    """
    found: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise InputError(str(folder), "is no folder", "llmlab run makes runs/NAME; --out names another")
        found |= dict.fromkeys(_below(folder, DEPTH))
    return list(found)


def _below(folder: Path, depth: int) -> Iterator[Path]:
    if is_run(folder):
        yield folder
        return
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()) if depth else []
    shared = "data" if (folder / "arms").is_dir() else ""  # what the arms of a race have in common is no run
    for path in inside:
        if not path.name.startswith(".") and path.name != shared:
            yield from _below(path, depth - 1)


def read_row(folder: Path) -> Row:
    """What a run's folder says. A folder that says nothing that can be read is a row too."""
    try:
        record = read_run(folder)
    except InputError as error:
        record = RunRecord(folder.resolve().name, {}, "", {})
        state = f"{_BROKEN}: {error.problem}"
    else:
        state = _state(folder, record)
    finished = [stage for stage in record.stages.values() if stage.finished]
    times = [path.stat().st_mtime for stage in finished if (path := folder / stage.name / "manifest.json").is_file()]
    return Row(
        folder=folder,
        record=record,
        state=state,
        recipe=recipe_hash(record.recipe),
        done=tuple(stage.name for stage in finished),
        date=datetime.fromtimestamp(max(times)).strftime("%Y-%m-%d %H:%M") if times else "",
        seconds=findings.seconds(record),
        bytes=sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()),
        figures={f"{stage.name}.{name}": value for stage in finished for name, value in key_figures(stage)},
    )


def _state(folder: Path, record: RunRecord) -> str:
    if not record.recipe:
        return f"{_BROKEN}: recipe.yaml " + ("cannot be read" if record.recipe_text else "is missing")
    begun = [stage for stage in ORDER if (folder / stage / "started.json").is_file()]
    if damaged := [name for name in ORDER if (folder / name / "manifest.json").is_file() and not _done(record, name)]:
        return f"{_BROKEN}: {damaged[0]}/manifest.json cannot be read"
    if (folder / "diverged.json").is_file():
        return "diverged"
    expected = _expected(record.recipe)
    missing = [name for name in expected if not _done(record, name)]
    if not missing:
        return "finished" if expected else f"{_BROKEN}: recipe.yaml has no stage"
    return f"{missing[0]} {_progress(record, missing[0])}" if missing[0] in begun else f"{missing[0]} not begun"


def _progress(record: RunRecord, stage: str) -> str:
    rows = record.stages[stage].rows if stage in record.stages else ()
    step = max((number(row.get("step")) or 0.0 for row in rows), default=0.0)
    section = record.recipe.get(stage)
    training = section.get("training") if isinstance(section, dict) else None
    of = number(training.get("steps")) if isinstance(training, dict) else None
    return f"at step {step:.0f}" + (f" of {of:.0f}" if of else "")


def _done(record: RunRecord, stage: str) -> bool:
    return stage in record.stages and record.stages[stage].finished


def _expected(recipe: Mapping[str, Any]) -> list[str]:
    """The stages that a recipe has; documents need a tokenizer, their own or the base's."""
    there = {name for name in ORDER if recipe.get(name) is not None}
    return [name for name in ORDER if name in there or (name == "tokenizer" and "text" in there)]


def recipe_hash(recipe: Mapping[str, Any]) -> str:
    """Eight letters of what decides a model but for its seed; empty without a recipe."""
    content = {name: value for name, value in recipe.items() if name not in _NAMES}
    if not content:
        return ""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]


def key_figures(stage: StageRecord) -> Iterator[tuple[str, float]]:
    """A stage's figures of held-out data and what became of the reward, by name."""
    held = stage.figures.get("held_out")
    for owner in (held if isinstance(held, dict) else {}, stage.figures):
        for name, value in owner.items():
            plain = value.get("value") if isinstance(value, dict) else value
            telling = str(name).startswith(("held_out_", "gold_reward")) and not str(name).endswith("_interval")
            if telling and (found := number(plain)) is not None:
                yield str(name), found


def in_order(rows: Sequence[Row], by: str) -> list[Row]:
    """Sorted by a column or a figure, what has none of it last. Errors: InputError for a name that no row has."""
    if by in _COLUMNS:
        return sorted(rows, key=lambda row: row.json()[by] or 0 if by in ("seconds", "bytes") else str(row.json()[by]))
    names = dict.fromkeys(name for row in rows for name in row.figures)
    full = [name for name in names if by in (name, name.split(".", 1)[1])]
    if not full:
        raise unknown("--sort", by, [*_COLUMNS, *names])
    return sorted(rows, key=lambda row: next((row.figures[name] for name in full if name in row.figures), float("inf")))


# ---------------------------------------------------------------- beside each other


def differences(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Every field of the recipes in which they are not all alike, with each run's value; None where it has none."""
    flat = [dict(_flat(row.record.recipe)) for row in rows]
    paths = dict.fromkeys(path for fields in flat for path in fields)
    found = {path: [fields.get(path) for fields in flat] for path in paths}
    return {path: values for path, values in found.items() if any(value != values[0] for value in values)}


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, inner in enumerate(value):
            yield from _flat(inner, f"{path}[{index}]")
    else:
        yield path, value


def figures_beside(rows: Sequence[Row]) -> dict[str, list[float | None]]:
    """Each key figure, and the time, of every run; None where it has none."""
    names = dict.fromkeys(name for row in rows for name in row.figures)
    return {name: [row.figures.get(name) for row in rows] for name in names}


def labels(rows: Sequence[Row]) -> list[str]:
    """What to call each run: its name where names differ, else the name of its folder, else the whole path."""
    kinds = ([row.record.name for row in rows], [row.folder.resolve().name for row in rows])
    return next((names for names in kinds if len(set(names)) == len(rows)), [str(row.folder) for row in rows])
