"""Runs as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmlab.evaluation import findings
from llmlab.evaluation.plots import short
from llmlab.evaluation.runs import Row, differences, figures_beside, labels

_SHOWN = 3  # figures of a run in a list; --json has them all


def listing(rows: Sequence[Row]) -> str:
    """A line a run."""
    if not rows:
        return "no runs here (llmlab run makes runs/NAME)"
    cells = [("run", "recipe", "seed", "finished", "time", "size", "state", "figures")]
    for row in rows:
        seed = row.record.recipe.get("seed")
        figures = [(name, value) for name, value in row.figures.items() if not name.startswith("tokenizer.")]
        told = "  ".join(f"{name} {short(value)}" for name, value in figures[-_SHOWN:])
        cells.append(
            (
                str(row.folder), row.recipe or "-", "-" if seed is None else str(seed), row.date or "-",
                findings.duration(row.seconds) if row.seconds else "-", findings.size(row.bytes), row.state, told,
            )
        )  # fmt: skip
    return _columns(cells)


def comparison(rows: Sequence[Row]) -> str:
    """Fields in which the recipes differ, then figures, a column a run."""
    names = labels(rows)
    fields = [(path, *map(_plain, values)) for path, values in differences(rows).items()]
    figures = [
        (name, *("-" if value is None else short(value) for value in values))
        for name, values in figures_beside(rows).items()
    ]
    costs = [
        ("state", *(row.state for row in rows)),
        ("time", *(findings.duration(row.seconds) if row.seconds else "-" for row in rows)),
        ("size", *(findings.size(row.bytes) for row in rows)),
    ]
    alike = [("(the recipes are alike)", *("" for _ in rows))]
    return _columns([("", *names), *(fields or alike), ("", *("" for _ in rows)), *figures, *costs])


def _plain(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _columns(cells: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in cells]
    return "\n".join(line.rstrip() for line in lines)
