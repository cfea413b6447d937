"""Successive halving: many trials for few steps, the best of them for more (Karnin et al. 2013; Jamieson & Talwalkar
2016, arXiv 1502.07943, of which this is the version with a whole horizon: the last rung is the recipe's own steps).

A rung is a pause in the whole training, not a training of its own: a trial has the schedule of the full length from its
first step, is measured where it pauses, and goes on from its checkpoint if it is among the best. So no step is made
twice, whatever the schedule is; but a rung is judged at a learning rate that has not come down yet (wsd, cosine,
linear), and what learns fast at first is preferred to what ends lower. That is the price of the method; the full
training of every trial (random search) does not pay it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch

from llmlab.checkpoints.bundle import Bundle
from llmlab.data.shards import TokenShards
from llmlab.errors import InputError, Stopped
from llmlab.evaluation.measures import VERSION, Finished, Measure, take
from llmlab.race.arms import Arm, hashed
from llmlab.race.life import run_arm
from llmlab.runtime import atomic_json
from llmlab.stages import Session
from llmlab.tokenization.tokenizer import Tokenizer
from llmlab.training.state import Checkpoints


class Rung(NamedTuple):
    """So many trials are trained up to so many steps."""

    trials: int
    steps: int


def rungs(trials: int, steps: int, eta: int | None) -> list[Rung]:
    """Each rung has an eta-th of the trials of the one before and eta times the steps; the last has all of the steps.
    Without eta there is that one. Errors: InputError where halving has nothing to halve."""
    if eta is None:
        return [Rung(trials, steps)]
    if eta < 2:
        raise InputError("--halving", f"{eta} throws nothing away", "2 to 4 is usual")
    if trials < eta:
        raise InputError("--halving", f"{trials} trials cannot be divided by {eta}", "more --trials")
    count = 0
    while eta ** (count + 1) <= trials:
        count += 1
    found = [Rung(trials // eta**k, round(steps / eta ** (count - k))) for k in range(count + 1)]
    if found[0].steps < 1:
        least = f"{trials} trials and eta {eta} need {eta**count} steps at least"
        raise InputError("--halving", f"{steps} steps leave none for the first rung", least)
    return found


def steps_of(plan: Sequence[Rung]) -> int:
    """Optimizer steps that the plan spends where no trial diverges: survivors go on, so each is made once."""
    before = [0, *(rung.steps for rung in plan)]
    return sum(rung.trials * (rung.steps - made) for rung, made in zip(plan, before, strict=False))


def check(arm: Arm) -> None:
    """InputError where a pause of this recipe cannot be measured."""
    if arm.recipe.pretrain is None or arm.recipe.model is None:
        raise InputError("--halving", "needs a recipe that trains a new model from text", "leave it out: random search")
    for name in ("sft", "reward", "dpo", "ppo"):
        if getattr(arm.recipe, name) is not None:
            raise InputError("--halving", f"the rungs are steps of pretrain, and {name} comes after it", f"{name}=null")


def reach(arm: Arm, seed: int, rung: Rung, last: bool, root: Path, session: Session, measure: Measure) -> float | str:
    """Train this trial up to a rung and measure it there: the figure, or the reason why there is none. What was done
    before is kept. Raises `Stopped` after saving when the session asks to stop."""
    if last:
        return run_arm(arm, seed, root, session, [measure], lambda line: None).values[measure.name]
    folder, steps = root / "arms" / arm.key(seed)[:16], rung.steps
    kept = _kept(folder, arm, seed, measure)
    if str(steps) not in kept:
        try:
            life = run_arm(arm, seed, root, replace(session, until=steps), [measure], lambda line: None)
        except Stopped:
            if session.stop.requested:
                raise
            kept[str(steps)] = _paused(arm, folder, session, measure)
            atomic_json(folder / "rungs.json", {"of": _of(arm, seed, measure), "values": kept})
        else:  # it diverged before
            return life.values[measure.name]
    return kept[str(steps)]


def _paused(arm: Arm, folder: Path, session: Session, measure: Measure) -> float | str:
    """The figure of the weights that would be kept if this were the end."""
    recipe = arm.recipe
    assert recipe.pretrain is not None
    assert recipe.model is not None
    tokenizer, held = Tokenizer.load(folder / "tokenizer"), TokenShards(folder / "tokenizer" / "held_out")
    checkpoints = Checkpoints(folder / "pretrain", keep=1)
    saved = checkpoints.newest()
    assert saved is not None
    objective = recipe.pretrain.objective
    model = objective.settled(recipe.model, tokenizer).build(tokenizer.vocab_size, 0)
    best, parameters = checkpoints.load_best(saved.values["best"]["step"]), dict(model.named_parameters())
    with torch.no_grad():
        for name in best.keys() | parameters.keys():
            parameters[name].copy_(best[name])
    bundle = Bundle(model.eval().to(session.device), tokenizer, model.architecture, str(folder))
    life = Finished(bundle, held, arm.length, recipe.pretrain.packing, (), objective)
    return take(measure.family, life)[measure.name]


def _of(arm: Arm, seed: int, measure: Measure) -> str:
    return hashed([arm.key(seed), VERSION, measure.name])


def _kept(folder: Path, arm: Arm, seed: int, measure: Measure) -> dict[str, float | str]:
    path = folder / "rungs.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    values: dict[str, float | str] = found["values"] if found.get("of") == _of(arm, seed, measure) else {}
    return values
