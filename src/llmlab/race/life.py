"""One arm with one seed: a run folder that is kept, so that a wider race runs only what is new.

RACE/data/<hash>/text, tokenizer      made once, shared by all arms and seeds of one text and vocabulary
RACE/arms/<hash>/                     a run: recipe.yaml, pretrain/, ...; text and tokenizer are links into data/
RACE/arms/<hash>/measured.json        what was measured of it, by family, each under the key it was measured for
RACE/arms/<hash>/diverged.json        in place of a model, where training left the finite: that is a result too

The folder of an arm is named by its resolved recipe and seed; what is measured in it is kept under the hash of these,
the version of the measures and the key of the last stage. So a new way of measuring costs no training. Checkpoints go
when an arm is finished.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from llmlab.adapters.opening import open_policy
from llmlab.data.pack import Isolated
from llmlab.data.shards import TokenShards
from llmlab.errors import Diverged
from llmlab.evaluation.extrapolation import block_ends
from llmlab.evaluation.measures import VERSION, Finished, Measure, Values, take
from llmlab.objectives.pretraining import Causal
from llmlab.race.arms import Arm, hashed
from llmlab.run import live, stages
from llmlab.runtime import atomic_json, autocast_dtype, device
from llmlab.stages import Session, manifest, run_stages

SHARED = ("text", "tokenizer")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Life:
    """A finished arm of one seed: where it lies, and of each measure a number or the reason why there is none."""

    folder: Path
    values: Values
    dtype: str  # of its matrix products in training
    fresh: bool  # whether it was trained now
    seconds: float  # of training, whenever that was


def prepare(arms: Sequence[Arm], root: Path, session: Session, say: Say) -> None:
    """Make the text and tokenizer of all arms, each different pair once."""
    for arm in {_data(arm, root): arm for arm in arms}.values():
        folder = _data(arm, root)
        shared = [stage for stage in stages(arm.of_seed(session.seed), folder) if stage.name in SHARED]
        run_stages(shared, folder, session, say)


def check_text(arms: Sequence[Arm], root: Path, measures: Sequence[Measure]) -> None:
    """What only the tokens tell, said before any training. Errors: InputError where the text is too short."""
    if any(measure.family == "length" for measure in measures):
        for arm in arms:
            if arm.length is not None:
                block_ends(TokenShards(_data(arm, root) / "tokenizer" / "held_out"), arm.length)


def run_arm(arm: Arm, seed: int, root: Path, session: Session, measures: Sequence[Measure], say: Say) -> Life:
    """Train where it was not done before, measure what was not measured before.

    Raises `Stopped` after saving when the session asks to stop.
    """
    folder = root / "arms" / arm.key(seed)[:16]
    _link(arm, folder, root)
    recipe = arm.of_seed(seed)
    where = device(recipe.device)
    session = replace(session, seed=seed, device=where, dtype=autocast_dtype(recipe.dtype, where))
    dtype = str(session.dtype or torch.float32).removeprefix("torch.")
    names = [stage.name for stage in stages(recipe, folder) if stage.name not in SHARED]
    began = {"data": _key_of(folder / "tokenizer"), "device": session.device.type, "dtype": dtype}
    refused = _kept(folder / "diverged.json", began)
    fresh = refused is None and manifest(folder / names[-1]) is None
    if refused is None:
        try:
            live(recipe, folder, session, say)
        except Diverged as error:
            refused = {"of": began, "reason": f"diverged at {error.place}: {error.problem}"}
            atomic_json(folder / "diverged.json", refused)
        for name in names:
            for unneeded in ("checkpoints", "best"):
                shutil.rmtree(folder / name / unneeded, ignore_errors=True)
    done = [made for name in names if (made := manifest(folder / name)) is not None]
    if refused is not None:
        values: Values = {measure.name: str(refused["reason"]) for measure in measures}
    else:
        values = _measured(arm, seed, folder, done, session, measures)
    return Life(folder, values, dtype, fresh, sum(made["seconds"] for made in done))


def _measured(
    arm: Arm, seed: int, folder: Path, done: Sequence[dict[str, Any]], session: Session, measures: Sequence[Measure]
) -> Values:
    path, of = folder / "measured.json", hashed([arm.key(seed), VERSION, done[-1]["key"]])
    kept = _kept(path, of) or {"of": of, "version": VERSION, "families": {}}
    known = [name for family in kept["families"].values() for name in family]
    missing = list(dict.fromkeys(measure.family for measure in measures if measure.name not in known))
    if missing:
        bundle, held = open_policy(folder), folder / "tokenizer" / "held_out"
        bundle.model.to(session.device)
        first = arm.recipe.pretrain
        packing, objective = (Isolated(), Causal()) if first is None else (first.packing, first.objective)
        life = Finished(bundle, TokenShards(held) if held.is_dir() else None, arm.length, packing, done, objective)
        for family in missing:
            kept["families"][family] = take(family, life)
        atomic_json(path, kept)
    return {measure.name: kept["families"][measure.family][measure.name] for measure in measures}


def _kept(path: Path, of: Any) -> dict[str, Any] | None:
    """What a file says, where it speaks of the same thing."""
    found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return found if found is not None and found["of"] == of else None


def _key_of(stage: Path) -> str | None:
    made = manifest(stage)
    return None if made is None else str(made["key"])


def _data(arm: Arm, root: Path) -> Path:
    """By what decides the tokens: the two sections, and the special tokens that the objective adds to a vocabulary."""
    content = {name: arm.content[name] for name in SHARED}
    recipe = arm.recipe
    if recipe.pretrain is not None and recipe.model is not None and (special := recipe.pretrain.special(recipe.model)):
        content["special"] = special
    return root / "data" / hashed(content)[:16]


def _link(arm: Arm, folder: Path, root: Path) -> None:
    """The shared stages, as if this run had made them. Relative, so that the race's folder can be moved."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in SHARED:
        if (_data(arm, root) / name).is_dir() and not (folder / name).is_symlink():
            (folder / name).symlink_to(Path("..", "..", "data", _data(arm, root).name, name))
