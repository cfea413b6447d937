"""`llmlab compare`: the race of recipes. Each arm and seed lives, is measured, and is compared pair by pair.

Seeds are the outer loop, and the arms take turns at going first: whatever the machine does meanwhile falls on all arms,
and a race that is stopped has whole seeds. A race in a folder that has one already runs only the arms, seeds and
measures that are new.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from llmlab.errors import InputError, Stopped
from llmlab.evaluation.measures import VERSION, Compare, Measure, read_measures
from llmlab.race import arms as making
from llmlab.race import verdicts
from llmlab.race.arms import Arm
from llmlab.race.equal import WIDTH, equalised
from llmlab.race.figure import draw
from llmlab.race.life import Life, Say, check_text, prepare, run_arm
from llmlab.region import keep_freed_memory
from llmlab.run import Run
from llmlab.runtime import (
    atomic_json,
    atomic_text,
    disk_full,
    interruptible,
    keep_few_kernels,
    lock,
    make_deterministic,
    versions,
)
from llmlab.stages import Session

RESULT, FIGURE = "race.json", "race.svg"


def compare(
    recipe: Run,
    vary: Mapping[str, Sequence[Any]],
    seeds: int | Sequence[int],
    out: Path,
    *,
    measures: Sequence[str] = (),
    equal: str = "tokens",
    adjust: str = WIDTH,
    quiet: bool = True,
) -> dict[str, Any]:
    """Race the product of the varied values of `recipe`: `{arms, pairs, settings, versions, seconds, figure, out}`.

    `seeds` is a count, from the recipe's own seed on, or the seeds themselves. `measures` are by default those of the
    recipe's `compare` section. Written to `out`: race.json (this answer), race.svg, and the arms, kept one by one.
    Errors: InputError for anything that can be known before work; `Stopped` after saving.
    """
    chosen = read_measures(measures or (recipe.compare or Compare()).measures)
    numbers = range(recipe.seed, recipe.seed + seeds) if isinstance(seeds, int) else seeds
    made = making.arms(recipe, vary)
    settings = {"recipe": recipe.name, "vary": {path: list(values) for path, values in vary.items()}}
    return race(made, list(numbers), out, chosen, equal=equal, adjust=adjust, settings=settings, quiet=quiet)


def race(
    arms: Sequence[Arm],
    seeds: Sequence[int],
    out: Path,
    measures: Sequence[Measure],
    *,
    equal: str = "tokens",
    adjust: str = WIDTH,
    settings: Mapping[str, Any] | None = None,
    quiet: bool = True,
) -> dict[str, Any]:
    """The same for any arms: `Arm(name, recipe)`, each a whole recipe."""
    making.check(arms, seeds, measures)
    arms = equalised(arms, equal, adjust)
    making.check(arms, seeds, measures)  # what was made equal may have become the same
    begin = time.monotonic()
    with at_work(out, seeds[0], quiet) as (session, say):
        lives = _lives(arms, seeds, out, session, measures, say)
        told = dict(settings or {}) | {
            "seeds": list(seeds),
            "measures": [measure.name for measure in measures],
            "measure_version": VERSION,
            "equal": equal,
            "adjust": adjust if equal == "parameters" else None,
            "confidence": verdicts.CONFIDENCE,
            "difference": "a minus b, paired over seeds; the verdict is on a",
        }
        result = _result(arms, seeds, measures, lives, told, out)
        result["trained"] = sum(life.fresh for life in lives.values())
        result["seconds"] = round(time.monotonic() - begin, 3)
        atomic_text(out / FIGURE, draw(result))
        atomic_json(out / RESULT, result)
    return result


@contextmanager
def at_work(out: Path, seed: int, quiet: bool, what: str = "race") -> Iterator[tuple[Session, Say]]:
    """The folder, locked, with a session that Ctrl-C can stop and a way to tell how it goes. What stops the work says
    how to go on. InputError for a folder that holds something else."""
    own(out, what)
    make_deterministic()
    keep_freed_memory()
    keep_few_kernels()
    keep_few_kernels()

    def say(line: str) -> None:
        if not quiet:
            print(line, file=sys.stderr)

    with ExitStack() as stack:
        stack.enter_context(lock(out))
        session = Session(seed, stop=stack.enter_context(interruptible()), quiet=quiet)
        go_on = "the same command goes on; what is finished is kept"
        try:
            yield session, say
        except KeyboardInterrupt:
            raise Stopped(f"stopped at once; {go_on} in {out}") from None
        except Stopped as stopped:
            raise Stopped(f"{stopped}; {go_on} in {out}") from None
        except OSError as error:
            if not disk_full(error):
                raise
            raise InputError(str(out), "no space left on the disk", f"free some; {go_on}") from None


def own(out: Path, what: str) -> None:
    """Refuse a folder that is there and holds something else."""
    if out.exists() and not out.is_dir():
        raise InputError(str(out), "is a file", "--out names a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / "lock").is_file():
        raise InputError(str(out), f"exists already and holds no {what}", "--out names another folder")
    if (out / "recipe.yaml").exists():
        raise InputError(str(out), f"holds a run, not a {what}", "--out names another folder")


def _lives(
    arms: Sequence[Arm], seeds: Sequence[int], out: Path, session: Session, measures: Sequence[Measure], say: Say
) -> dict[tuple[str, int], Life]:
    """Every arm of every seed, in the order in which they are run."""
    prepare(arms, out, session, lambda line: None)
    check_text(arms, out, measures)
    lives: dict[tuple[str, int], Life] = {}
    turns = [[*arms[turn % len(arms) :], *arms[: turn % len(arms)]] for turn in range(len(seeds))]
    todo = [(arm, seed) for seed, turn in zip(seeds, turns, strict=True) for arm in turn]
    for number, (arm, seed) in enumerate(todo, 1):
        if session.stop.requested:
            raise Stopped(f"stopped before {arm.name}, seed {seed}")
        where = f"[{number}/{len(todo)}] {arm.name}, seed {seed}"
        try:
            life = run_arm(arm, seed, out, session, measures, lambda line: None)
        except Stopped as stopped:
            raise Stopped(f"{where}: {stopped}") from None
        except InputError as error:
            raise InputError(f"arm {arm.name}, seed {seed}: {error.place}", error.problem, error.hint) from None
        lives[arm.name, seed] = life
        first = life.values[measures[0].name]
        told = f"{measures[0].name} {first:.4g}" if isinstance(first, float) else first
        say(f"{where}: {told}, {life.seconds:.0f} s" + ("" if life.fresh else " (kept)"))
    return lives


def _result(
    arms: Sequence[Arm],
    seeds: Sequence[int],
    measures: Sequence[Measure],
    lives: Mapping[tuple[str, int], Life],
    settings: Mapping[str, Any],
    out: Path,
) -> dict[str, Any]:
    rows = {m.name: {arm.name: [lives[arm.name, s].values[m.name] for s in seeds] for arm in arms} for m in measures}
    return {
        "out": str(out),
        "arms": [
            {
                "name": arm.name,
                "values": dict(arm.values),
                "changed": [dict(change) for change in arm.changed],
                "measures": [verdicts.summary(m, rows[m.name][arm.name]) for m in measures],
                "dtype": lives[arm.name, seeds[0]].dtype,
                "runs": {str(s): str(lives[arm.name, s].folder.relative_to(out)) for s in seeds},
            }
            for arm in arms
        ],
        "pairs": [pair for measure in measures for pair in verdicts.pairs(measure, rows[measure.name])],
        "settings": dict(settings),
        "versions": versions(),
        "figure": str(out / FIGURE),
    }
