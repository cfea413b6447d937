"""The handbook as one page of HTML: the answered questions, and each race they read, drawn from its record.

It needs no network, no script and no second file; every text in it is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from llmlab import runtime
from llmlab.errors import InputError
from llmlab.evaluation.report import style
from llmlab.handbook import page, raced
from llmlab.handbook.question import Language, Question, Table, Text, Verdict, asked, built, code_of, load, numbered
from llmlab.handbook.race_plot import BANDS, INTERVALS, SIDES, dots, lines
from llmlab.handbook.race_rows import Block, Cell, blocks, difference, listed, title_of, value
from llmlab.handbook.runner import Record, shipped

GENERATOR = "llmlab handbook"

TITLE = Text("54 questions about language models, answered by running", "关于语言模型的 54 问，以实验作答")
SUMMARY = Text(
    "Each verdict is computed from figures by thresholds set beforehand; the records that hold the figures ship with "
    "the package.",
    "每条裁决都由数据按事先定下的阈值算出；存放数据的记录随软件包一同发布。",
)
WORDS = {
    "question": Text("Question", "问题"),
    "verdict": Text("Verdict", "裁决"),
    "claims": page.CLAIMS,
    "races": page.RACES,
    "colon": page.COLON,
    "arm": Text("Arm", "分支"),
    "seeds": Text("Seeds", "种子数"),
}
CAPTION = Text(
    "Mean ± half of its 95 % interval over seeds; below it the paired difference from “{baseline}”, in colour where "
    "its interval excludes 0. Each interval stands for itself: of twenty differences of nothing, one would.",
    "均值 ± 95% 区间半宽（跨种子）；其下为与“{baseline}”配对之差，区间不含 0 者着色。各区间单独成立：二十个并无差别的"
    "比较中，平均也会有一个如此。",
)
CAPTION_ALONE = Text("Mean ± half of its 95 % interval over seeds.", "均值 ± 95% 区间半宽（跨种子）。")
MISSING = Text("{arms}: {reason}", "{arms}：{reason}")
ROWS = Text("Arm by arm", "逐项数据")
OVER = Text("{measure}, by context", "{measure}，随上下文长度")


@dataclass(frozen=True)
class Source:
    """What a page is made of: its language, fresh records in place of shipped ones, the folder of the race records."""

    lang: Language
    fresh: Mapping[int, Record]
    races: Path

    def say(self, text: Text) -> str:
        return text.in_language(self.lang)

    def record(self, number: int) -> Record | None:
        return self.fresh.get(number) or shipped(number)


def write_page(
    path: Path, number: int | None = None, lang: str = "en", record: Record | None = None, races: Path = raced.SHIPPED
) -> Path:
    """Write the page of one question, or of all that are answered. InputError where it cannot be written there.

    A file that is no page of the handbook is not overwritten.
    """
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else f"there is no folder {path.parent}"
        raise InputError(f"--html {path}", what, "name a file, such as handbook.html")
    if path.exists() and f'content="{GENERATOR}"' not in path.read_text(encoding="utf-8", errors="replace")[:2000]:
        raise InputError(f"--html {path}", "this file exists and is no page of the handbook", "name another")
    runtime.atomic_text(path, render(number, lang, record, races))
    return path


def render(
    number: int | None = None, lang: str = "en", record: Record | None = None, races: Path = raced.SHIPPED
) -> str:
    """The page as text; `record` is a fresh run of question `number`."""
    source = Source(page.language(lang), {} if number is None or record is None else {number: record}, races)
    if number is not None and code_of(numbered(number)) is None:
        load(number)  # says that it is not built
    shown = [number] if number is not None else [n for n in built() if source.record(n)]
    questions = {n: load(n) for n in shown}
    names = dict.fromkeys(name for question in questions.values() for name in question.races)
    told = {name: found.record for name in names if (found := raced.shipped(name, races)) is not None}
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = (resources.files("llmlab.handbook") / "page.html").read_text(encoding="utf-8")
    title = source.say(TITLE) if number is None else f"{number}. {source.say(asked()[number].text)}"
    return environment.from_string(text).render(
        lang="zh" if source.lang == "zh" else "en",
        generator=GENERATOR,
        style=style(),
        title=title,
        summary=source.say(SUMMARY),
        words={name: source.say(word) for name, word in WORDS.items()},
        tiles=_tiles(source) if number is None else [],
        contents=_contents(source) if number is None else [],
        questions=[_question(question, source, told) for question in questions.values()],
        races=[_race(record, source) for record in told.values()],
        foot=" · ".join(f"{package} {version}" for package, version in runtime.versions().items()),
    )


def _contents(source: Source) -> list[dict[str, Any]]:
    rows = []
    for number, one in asked().items():
        record = source.record(number)
        label, kind = _verdict(record["verdict"] if record else None, source)
        rows.append({"n": number, "text": source.say(one.text), "label": label, "kind": kind})
    return rows


def _tiles(source: Source) -> list[dict[str, Any]]:
    """How many questions have which verdict."""
    found = [record["verdict"] for number in asked() if (record := source.record(number))]
    tiles = [{"label": source.say(page.VERDICTS[v]), "count": found.count(v), "kind": str(v)} for v in Verdict]
    return [tile for tile in tiles if tile["count"]]


def _verdict(name: str | None, source: Source) -> tuple[str, str]:
    """What it is called, and its class on the page."""
    return (source.say(page.VERDICTS[Verdict(name)]), name) if name else (source.say(page.NONE), "")


# ---------------------------------------------------------------- questions


def _question(question: Question, source: Source, told: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    number, record, say = question.number, source.record(question.number), source.say
    label, kind = _verdict(record["verdict"] if record else None, source)
    path = code_of(number)
    assert path is not None
    texts = [
        (page.SAYS, [say(question.claim)]),
        (page.RIGHT, [say(question.correction)]),
        (page.RUNS, [say(question.run)]),
        (page.FOUND, [record["evidence"][source.lang] if record else say(page.UNRUN)]),
        (page.PAPER_ONLY, [f"{say(text)} [{code}]" for code, text in question.on_paper.items()]),
        (page.PAPERS, list(question.papers)),
        (page.CODE, [" · ".join([f"llmlab/handbook/{path.name}", *question.uses])]),
    ]
    parts = [{"title": say(name), "body": body, "said": name is page.SAYS} for name, body in texts]
    return {
        "n": number,
        "text": say(asked()[number].text),
        "label": label,
        "kind": kind,
        "before": parts[:4],
        "tables": [_table(one, source) for one in question.tables(record["figures"])] if record else [],
        "after": [part for part in parts[4:] if part["body"]],
        "claims": [_claim(question, place, record, source) for place in range(len(question.claims))],
        "races": [{"name": n, "title": say(title_of(told[n]))} for n in question.races if n in told],
        "measured": page.measured(record, source.lang) if record else "",
    }


def _table(table: Table, source: Source) -> dict[str, Any]:
    heads, *rows = table.in_language(source.lang)
    return {"title": source.say(table.title), "heads": heads, "rows": rows}


def _claim(question: Question, place: int, record: Record | None, source: Source) -> dict[str, Any]:
    claim, say = question.claims[place], source.say
    judged = {row["name"]: row["verdict"] for row in record["claims"]} if record else {}
    values = {(row["claim"], row["figure"]): row for row in record["checks"]} if record else {}
    label, kind = _verdict(judged[claim.name], source) if claim.name in judged else ("–", "")
    checks = []
    for check in claim.checks:
        row = values.get((claim.name, check.figure))
        checks.append(
            {
                "mark": ("✓" if row["passed"] else "✗") if row else "",
                "asks": say(check.asks),
                "value": page.short(row["value"]) if row else "?",
                "asked": f"{check.relation} {page.short(check.threshold)}",
            }
        )
    role, errors = say(page.KINDS[claim.kind]), ", ".join(claim.errors)
    return {"label": label, "kind": kind, "role": role, "said": say(claim.said), "errors": errors, "checks": checks}


# ---------------------------------------------------------------- races


def _race(record: Mapping[str, Any], source: Source) -> dict[str, Any]:
    made = blocks(record)
    lengths, shown = [block for block in made if block.family], listed(record)
    return {
        "name": record["name"],
        "title": source.say(title_of(record)),
        "lead": page.race_line(record, source.lang),
        # One measure over the length is looked at; how else the same models may be read is folded.
        "blocks": [
            _block(block, record, source, folded=not shown or block in lengths[1:]) for block in made if block.rows
        ],
    }


def _block(block: Block, record: Mapping[str, Any], source: Source, folded: bool) -> dict[str, Any]:
    name, say = str(record["name"]), source.say
    title = say(OVER).format(measure=block.family) if block.family else "" if listed(record) else say(ROWS)
    figures = []
    if not listed(record):
        pass  # the question has drawn its own conclusions from figures that are of many kinds
    elif block.family:
        svg = lines(block, f"{say(title_of(record))} · {title}", source.lang, f"{name}-{block.family}")
        figures = [{"title": title, "note": say(BANDS), "svg": svg}]
    else:
        for place, column in enumerate(block.columns):
            if block.ranked(place) and block.varies(place):
                svg = dots(block, place, f"{say(title_of(record))} · {column.head}", source.lang, f"{name}-{place}")
                side = f"{say(SIDES[column.better])} · " if column.better else ""
                figures.append({"title": column.head, "note": side + say(INTERVALS), "svg": svg})
    caption = say(CAPTION).format(baseline=block.baseline) if block.baseline else say(CAPTION_ALONE)
    rows = [
        {"arm": arm, "cells": [_cell(c) for c in cells], "seeds": _seeds(cells)} for arm, cells in block.rows.items()
    ]
    because: dict[str, list[str]] = {}
    for arm, reason in block.reasons.items():
        because.setdefault(reason, []).append(arm)
    joined = "、" if source.lang == "zh" else ", "
    reasons = [say(MISSING).format(arms=joined.join(arms), reason=reason) for reason, arms in because.items()]
    heads = [column.head for column in block.columns]
    return {
        "title": title,
        "folded": folded,
        "figures": figures,
        "caption": caption,
        "heads": heads,
        "rows": rows,
        "reasons": reasons,
    }


def _cell(cell: Cell | None) -> dict[str, str] | None:
    if cell is None:
        return None
    return {"value": value(cell), "difference": difference(cell), "kind": cell.kind}


def _seeds(cells: Sequence[Cell | None]) -> int:
    return max(len(cell.by_seed) for cell in cells if cell is not None)
