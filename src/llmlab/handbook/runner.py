"""Runs a question and writes its record: figures, checks, verdict, and what they were measured with.

The records in `records/` ship with the package; they are what `llmlab handbook` shows. A fresh run goes to the user's
folder and never touches them.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmlab.errors import LlmlabError
from llmlab.handbook.question import HERE, TIER_LETTER, Question, load, numbered

if TYPE_CHECKING:
    from llmlab.handbook.raced import Told
    from llmlab.stages import Session

Record = dict[str, Any]

SHIPPED = HERE / "records"


def run_question(number: int, session: Session, out: Path | None = None, train: bool = False) -> Record:
    """Run the experiment of one question and write `qNN.json` below `out` (default: the user's folder).

    The races that it reads are those that were shipped; with `train` they are run here too, each resumable in a folder
    below `out`. InputError when the question does not exist or is not built; LlmlabError when a figure is not a finite
    number.
    """
    from llmlab.handbook.raced import race, save
    from llmlab.handbook.raced import shipped as shipped_race
    from llmlab.runtime import atomic_json, threads

    question = load(number)
    folder = out or user_folder()
    if train:
        for name in question.races:
            save(race(name).train(folder / "races" / name), folder)
    begin = time.perf_counter()
    with threads(1 if question.tier == "formula" else None):
        figures = {name: float(value) for name, value in question.figures(session).items()}
    seconds = time.perf_counter() - begin
    told = {name: shipped_race(name, folder) if train else shipped_race(name) for name in question.races}
    found = {name: record for name, record in told.items() if record is not None}
    if question.raced is not None and len(found) == len(told):
        figures |= {name: float(value) for name, value in question.raced(found).items()}
        seconds += sum(float(record.record["seconds"]) for record in found.values())
    else:
        found = {}
    broken = [name for name, value in figures.items() if not math.isfinite(value)]
    if broken:
        raise LlmlabError(f"handbook {number}: not a finite number: {', '.join(broken)}")
    record = recorded(question, figures, session.seed, seconds, found)
    atomic_json(folder / _name(number), record)
    return record


def recorded(
    question: Question, figures: dict[str, float], seed: int, seconds: float, races: Mapping[str, Told] | None = None
) -> Record:
    """The record of a run, ready for JSON. `races` are the records that its trained figures come from."""
    from llmlab.runtime import cpu_flags, versions

    races = races or {}
    decided = question.decided(figures)
    return {
        "n": question.number,
        "tier": "M" if races else TIER_LETTER[question.tier],
        "key": key(question, seed),
        "verdict": str(question.verdict(figures)),
        "evidence": question.evidence(figures)._asdict(),
        "claims": [
            {"name": claim.name, "kind": claim.kind, "verdict": str(claim.judged(figures))} for claim in decided
        ],
        "checks": [
            {
                "claim": claim.name,
                "figure": check.figure,
                "value": figures[check.figure],
                "relation": check.relation,
                "threshold": check.threshold,
                "passed": check.passed(figures),
            }
            for claim, check in question.checks
            if claim in decided
        ],
        "figures": figures,
        "seconds": round(seconds, 3),
        "date": datetime.now(UTC).date().isoformat(),
        "seed": seed,
        "races": {
            name: {"seeds": len(told.record["seeds"]), "seconds": told.record["seconds"], "date": told.record["date"]}
            for name, told in races.items()
        },
        "measure": question.measure,
        "versions": versions(),
        "cpu": cpu_flags(),
    }


def key(question: Question, seed: int) -> str:
    """Hash of what decides the figures: settings, seed and the version of the measure. The commit is not in it."""
    content = {
        "n": question.number,
        "tier": question.tier,
        "settings": dict(question.settings),
        "seed": seed,
        "measure": question.measure,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def shipped(number: int) -> Record | None:
    """The record of a question that came with the package, None while there is none."""
    return read(SHIPPED, numbered(number))


def read(folder: Path, number: int) -> Record | None:
    """The record of a question in a folder, None where there is none."""
    path = folder / _name(number)
    if not path.is_file():
        return None
    record: Record = json.loads(path.read_text(encoding="utf-8"))
    return record


def user_folder() -> Path:
    """Where fresh runs go: $LLMLAB_HOME/handbook, else ~/.cache/llmlab/handbook."""
    from llmlab.runtime import cache_folder

    return cache_folder() / "handbook"


def _name(number: int) -> str:
    return f"q{number:02d}.json"
