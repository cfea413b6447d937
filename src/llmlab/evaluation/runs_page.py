"""Runs beside each other as one page: where their recipes differ, their figures, and their curves in one plot each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined

from llmlab.evaluation import findings
from llmlab.evaluation.plots import Series, line_plot, short
from llmlab.evaluation.report import CURVES, TITLES, style
from llmlab.evaluation.runs import Row, differences, figures_beside, labels

MOST = 4  # runs in one plot: there are so many colours that can be told apart


def page(rows: Sequence[Row]) -> str:
    """The page as text; it needs no network and no second file, and every text in it is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"duration": findings.duration, "size": findings.size, "short": short}
    source = (resources.files("llmlab.evaluation") / "runs.html").read_text(encoding="utf-8")
    return environment.from_string(source).render(
        style=style(),
        names=labels(rows),
        rows=rows,
        fields=differences(rows),
        figures=figures_beside(rows),
        stages=list(_stages(rows)),
        beyond=labels(rows)[MOST:],
    )


def _stages(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    names = labels(rows)
    for stage in dict.fromkeys(name for row in rows for name in row.record.stages):
        there = [(label, row.record.stages[stage]) for label, row in zip(names, rows, strict=True)
                 if stage in row.record.stages][:MOST]  # fmt: skip
        figures = dict.fromkeys(name for _, record in there for name in record.names() if _drawn(name))
        plots = []
        for figure in figures:
            title, unit, _ = CURVES.get(figure, (figure.replace("_", " ").capitalize(), "", ()))
            series = [Series(label, *record.curve(figure), emphasis=True) for label, record in there]
            if svg := line_plot(title, unit, series):
                last = [(line.name, line.ys[-1] if line.ys else None) for line in series]
                plots.append({"title": title, "svg": svg, "last": last})
        if plots:
            yield {"title": TITLES.get(stage, stage), "plots": plots}


def _drawn(figure: str) -> bool:
    beside = {name for _, _, names in CURVES.values() for name in names}
    return figure in CURVES or figure in beside or figure.startswith("held_out")
