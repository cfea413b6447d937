"""The plan of a life: what each stage will hold and take here, before anything is run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

from llmlab.planner.machine import Machine
from llmlab.planner.material import Life, Material
from llmlab.planner.stages import STAGES, Planner, Taken
from llmlab.recipe import Section
from llmlab.runtime import autocast_dtype, device


@dataclass(frozen=True)
class StagePlan:
    """One stage. `by_cause` adds up to `peak_bytes`, the whole process with its interpreter. `seconds` None where the
    machine's speed is not known."""

    name: str
    peak_bytes: int
    seconds: float | None
    by_cause: dict[str, int]
    flops: float
    rough: bool

    def json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "peak_bytes": self.peak_bytes,
            "seconds": _rounded(self.seconds),
            "by_cause": self.by_cause,
            "flops": self.flops,
            "rough": self.rough,
        }


@dataclass(frozen=True)
class Plan:
    """The whole life. `parameters` are the model's, `trained` of them learn in the stage that trains most."""

    parameters: int
    trained: int
    stages: tuple[StagePlan, ...]

    @property
    def peak_bytes(self) -> int:
        return max((stage.peak_bytes for stage in self.stages), default=0)

    @property
    def seconds(self) -> float | None:
        known = [stage.seconds for stage in self.stages if stage.seconds is not None]
        return sum(known) if len(known) == len(self.stages) else None

    @property
    def flops(self) -> float:
        return sum(stage.flops for stage in self.stages)

    @property
    def fullest(self) -> StagePlan:
        return max(self.stages, key=lambda stage: stage.peak_bytes)

    def json(self) -> dict[str, Any]:
        return {
            "parameters": self.parameters,
            "trained": self.trained,
            "flops": self.flops,
            "peak_bytes": self.peak_bytes,
            "seconds": _rounded(self.seconds),
            "stages": [stage.json() for stage in self.stages],
        }


class Memo:
    """What was found for stages whose sections and data were the same, between plans of one recipe's variants."""

    def __init__(self) -> None:
        self._taken: dict[str, Taken] = {}
        self._materials: dict[str, Material] = {}

    def material(self, life: Life) -> Material:
        """The recipe's data, read once for all variants that differ in what is trained on them."""
        key = _dump(life, DATA)
        if key not in self._materials:
            self._materials[key] = Material(life)
        found = copy(self._materials[key])
        found.life = life
        return found

    def taken(self, planner: Planner, name: str) -> Taken:
        life = planner.material.life
        there = [stage for stage in STAGES if getattr(life, stage) is not None]
        key = _dump(life, (*DATA, name, *(("reward",) if name == "ppo" else ()))) + f"{name} {there}"
        if key not in self._taken:
            self._taken[key] = planner.stage(name)
            self._materials[_dump(life, DATA)] = planner.material
        return self._taken[key]


DATA = ("seed", "base", "rope", "text", "tokenizer", "model", "dtype", "kernels")


def _dump(life: Life, names: Sequence[str]) -> str:
    sections = {name: getattr(life, name) for name in names}
    plain = {
        name: part.model_dump(mode="json") if isinstance(part, Section) else part for name, part in sections.items()
    }
    objective = None if life.pretrain is None else life.pretrain.objective.model_dump(mode="json")
    return json.dumps([plain, objective], sort_keys=True, default=str)


def plan(life: Life, machine: Machine | None = None, memo: Memo | None = None) -> Plan:
    """Plan a recipe from its fields and its data alone; no earlier run is looked at.

    Errors: InputError as the run itself would have it: data that cannot be read, parts that cannot go together.
    """
    machine, memo = machine or Machine.known(), memo or Memo()
    planner = Planner(memo.material(life), machine, autocast_dtype(life.dtype, device("cpu")), life.kernels == "auto")
    found = [memo.taken(planner, name) for name in planner.names()]
    stages, shapes, rows = list[StagePlan](), 0, 0.0
    for taken in found:
        shapes += taken.shapes
        rows += taken.rows
        stages.append(_planned(taken, machine, shapes, rows))
    parameters = max([taken.parameters for taken in found] or [0]) or planner.numbers
    return Plan(parameters, max([taken.trained for taken in found] or [0]), tuple(stages))


def _planned(taken: Taken, machine: Machine, shapes: int, rows: float) -> StagePlan:
    """With what the process has anyway, and with the kernels and the torn heap of so many small objects that its stages
    so far left behind."""
    fullest = max(taken.moments, key=lambda moment: moment.bytes)
    computed = taken.name not in ("text", "tokenizer")
    kernels = machine.kernels(shapes)
    causes = {"interpreter": machine.bare_bytes if computed else machine.import_bytes, "kernels": kernels}
    causes["data"] = round(rows * machine.row_bytes)
    by_cause = {name: size for name, size in (causes | fullest.by_cause).items() if size}
    seconds = machine.stage_seconds + taken.seconds if machine.timed else None
    return StagePlan(taken.name, sum(by_cause.values()), seconds, by_cause, taken.flops, taken.rough)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
