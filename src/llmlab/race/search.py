"""`llmlab search`: the best values of some fields of a recipe, by random search or successive halving.

Random search (Bergstra & Bengio 2012, JMLR 13) trains every trial to the end; with `eta` the poor ones end early
(`halving.py`). All trials have the recipe's seed, so they share initial weights, data order and text. Each is a run
folder that is kept; the same command goes on after a stop, and what was done before is not done again.

The best of n figures is better than its trial is: it was chosen for its luck too. So the best trial is trained again
with seeds that the search has not seen, and that is the figure to report. What stays is that the same held-out text
chose it and measures it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmlab.errors import InputError, Stopped
from llmlab.evaluation.measures import VERSION, Compare, Measure, read_measures
from llmlab.race import verdicts
from llmlab.race.arms import Arm, buildable, changed, comparable
from llmlab.race.axes import Law, told, trials
from llmlab.race.compare import at_work
from llmlab.race.equal import STEPS
from llmlab.race.halving import Rung, check, reach, rungs, steps_of
from llmlab.race.life import Say, check_text, prepare, run_arm
from llmlab.run import Run
from llmlab.runtime import atomic_json, versions
from llmlab.stages import Session

RESULT, PLAN = "search.json", "plan.json"


@dataclass
class Trial:
    """One draw, and its figure at each rung that it came to."""

    number: int
    arm: Arm
    reached: list[tuple[Rung, float | str]] = field(default_factory=list)

    def rank(self, better: str) -> tuple[int, float, int]:
        """Smaller is better: further first, then the figure; no figure is worst, equals stand as they were drawn."""
        value = self.reached[-1][1] if self.reached else 0.0
        if isinstance(value, str):
            return 1, 0.0, self.number
        return -len(self.reached), -value if better == "higher" else value, self.number


def search(
    recipe: Run,
    over: Mapping[str, Law],
    out: Path,
    *,
    count: int | None = None,
    seeds: int = 3,
    measure: str = "",
    eta: int | None = None,
    quiet: bool = True,
) -> dict[str, Any]:
    """Search: `{out, best, trials, rungs, budget, settings, versions, seconds}`, also written to `out/search.json`.

    `count` trials, by default every combination of listed values; `eta`: successive halving; `seeds` fresh ones for the
    best trial. Errors: InputError for anything that can be known before work; `Stopped` after saving.
    """
    (chosen,) = read_measures([measure or (recipe.compare or Compare()).measures[0]])
    steps = _steps(recipe, over, chosen, seeds)
    found = [
        Trial(number, Arm(told(values), changed(recipe, values), values))
        for number, values in enumerate(trials(over, count, recipe.seed))
    ]
    plan = rungs(len(found), steps, eta)
    _check(found, chosen, eta)
    begin = time.monotonic()
    with at_work(out, recipe.seed, quiet, "search") as (session, say):
        _same_plan(out, recipe, over, found, chosen, eta)
        prepare([trial.arm for trial in found], out, session, lambda line: None)
        check_text([trial.arm for trial in found], out, [chosen])
        _climb(found, plan, out, session, chosen, say)
        ordered = sorted(found, key=lambda trial: trial.rank(chosen.better))
        fresh = _again(ordered[0], range(recipe.seed + 1, recipe.seed + 1 + seeds), out, session, chosen, say)
        result = _result(ordered, plan, fresh, chosen, out) | {
            "settings": {
                "recipe": recipe.name, "seed": recipe.seed, "measure": chosen.name, "measure_version": VERSION,
                "trials": len(found), "eta": eta,
            },
            "versions": versions(),
            "seconds": round(time.monotonic() - begin, 3),
        }  # fmt: skip
        atomic_json(out / RESULT, result)
    return result


# ---------------------------------------------------------------- before any work


def _steps(recipe: Run, over: Mapping[str, Law], measure: Measure, seeds: int) -> int:
    if recipe.pretrain is None:
        raise InputError("search", "the recipe pretrains nothing, so there is no held-out text to judge trials by")
    if STEPS in over:
        raise InputError(f"--over {STEPS}", "trials are compared at equal steps", f"set it for all: {STEPS}=N")
    if measure.family == "cost":
        raise InputError(f"--measure {measure.name}", "says nothing of how good a trial is", "bits_per_byte does")
    if seeds < 2:
        raise InputError("--seeds", f"{seeds} gives no interval", "take 2 at least, 5 to be sure")
    return recipe.pretrain.training.steps


def _check(found: Sequence[Trial], measure: Measure, eta: int | None) -> None:
    if len(found) < 2:
        raise InputError("--trials", f"{len(found)} leaves nothing to choose")
    for trial in found:
        buildable(trial.arm)
        if eta is not None:
            check(trial.arm)
    comparable([trial.arm for trial in found], measure)


def _same_plan(
    out: Path, recipe: Run, over: Mapping[str, Law], found: Sequence[Trial], measure: Measure, eta: int | None
) -> None:
    """Rungs of another plan lie at other steps. Without halving there are none, and a search may grow."""
    now = {
        "recipe": Arm("", recipe).content, "seed": recipe.seed, "over": {path: repr(law) for path, law in over.items()},
        "measure": measure.name, "eta": eta, "trials": len(found) if eta is not None else None,
    }  # fmt: skip
    path = out / PLAN
    then = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else now
    if other := next((name for name in now if then.get(name) != now[name]), None):
        raise InputError(str(out), f"holds a search that differs in {other}", "take another --out")
    atomic_json(path, now)


# ---------------------------------------------------------------- the search


def _climb(
    found: Sequence[Trial], plan: Sequence[Rung], out: Path, session: Session, measure: Measure, say: Say
) -> None:
    """Every rung: train those that are left up to it, measure, keep the best."""
    left = list(found)
    for rung in plan:
        best = sorted(left, key=lambda trial: trial.rank(measure.better))[: rung.trials]
        left = sorted(best, key=lambda trial: trial.number)
        for place, trial in enumerate(left, 1):
            where = f"[step {rung.steps}, {place}/{len(left)}] {trial.arm.name}"
            if session.stop.requested:
                raise Stopped(f"stopped before {where}")
            try:
                value = reach(trial.arm, session.seed, rung, rung is plan[-1], out, session, measure)
            except Stopped as stopped:
                raise Stopped(f"{where}: {stopped}") from None
            trial.reached.append((rung, value))
            say(f"{where}: " + (f"{measure.name} {value:.4g}" if isinstance(value, float) else value))
        left = [trial for trial in left if isinstance(trial.reached[-1][1], float)]
    if not left:
        raise InputError("search", f"no trial gave a figure; the first: {found[0].reached[-1][1]}")


def _again(
    best: Trial, seeds: Sequence[int], out: Path, session: Session, measure: Measure, say: Say
) -> dict[str, Any]:
    row = []
    for seed in seeds:
        if session.stop.requested:
            raise Stopped(f"stopped before the best trial with seed {seed}")
        value = run_arm(best.arm, seed, out, session, [measure], lambda line: None).values[measure.name]
        row.append(value)
        say(f"[best again, seed {seed}] {measure.name} {value:.4g}" if isinstance(value, float) else value)
    return {"seeds": list(seeds), **verdicts.summary(measure, row)}


def _result(
    ordered: Sequence[Trial], plan: Sequence[Rung], fresh: dict[str, Any], measure: Measure, out: Path
) -> dict[str, Any]:
    best, value = ordered[0], ordered[0].reached[-1][1]
    assert isinstance(value, float)
    sign = 1.0 if measure.better == "lower" else -1.0
    flattered = None if fresh["mean"] is None else sign * (fresh["mean"] - value)
    steps = plan[-1].steps
    return {
        "out": str(out),
        "best": {
            "trial": best.number,
            "values": dict(best.arm.values),
            "overrides": best.arm.name,
            "found": value,
            "fresh": fresh,
            "flattered_by": flattered,
        },
        "trials": [
            {
                "trial": trial.number,
                "values": dict(trial.arm.values),
                "rungs": [
                    {"steps": rung.steps, "value": seen if isinstance(seen, float) and math.isfinite(seen) else None,
                     **({"reason": seen} if isinstance(seen, str) else {})}
                    for rung, seen in trial.reached
                ],
                "run": str(Path("arms", trial.arm.key(trial.arm.recipe.seed)[:16])),
            }
            for trial in ordered
        ],
        "rungs": [rung._asdict() for rung in plan],
        "budget": {
            "search_steps": steps_of(plan),
            "all_to_the_end": len(ordered) * steps,
            "fresh_steps": len(fresh["seeds"]) * steps,
        },
    }  # fmt: skip
