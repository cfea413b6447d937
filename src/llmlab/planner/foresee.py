"""What a run does with its plan: refuses what cannot fit, and keeps the prediction beside what is measured."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from llmlab.errors import InputError
from llmlab.planner.fit import Change, Fitted, fit
from llmlab.planner.machine import Machine
from llmlab.planner.plan import Plan, plan
from llmlab.recipe import Section, parse
from llmlab.region import keep_freed_memory
from llmlab.runtime import atomic_json, keep_few_kernels, make_deterministic

NAME = "plan.json"
S = TypeVar("S", bound=Section)


class TooLarge(InputError):
    """A life that does not fit."""


def memory_bytes() -> int:
    """What this process may take: the machine's available memory, or its control group's limit where that is less.
    0 where the system does not tell."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError, IndexError):
        pass
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found.append(int(Path(path).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            continue
    return min(found, default=0)


def foreseen(change: Change, budget: int | None = None) -> dict[str, Any]:
    """The plan of a recipe, as JSON, which fits into `budget` bytes (this machine's memory unless told). Where this
    machine was never measured, no time is told: a run does not wait for that.

    Planned in a process of its own: what planning takes would stay in the run's, a hundred MB of it.

    Errors: TooLarge where it does not fit, naming the stage and what would make it fit; InputError where the recipe
    cannot be planned.
    """
    asked = {
        "recipe": change(()).model_dump(mode="json"),  # type: ignore[attr-defined]
        "budget": memory_bytes() if budget is None else budget,
        "threads": torch.get_num_threads(),
    }
    work = "from llmlab.run import Run, changes; from llmlab.planner.foresee import main; main(Run, changes)"
    done = subprocess.run([sys.executable, "-c", work], input=json.dumps(asked), capture_output=True, text=True)
    if done.returncode != 0:
        raise InputError("plan", (done.stderr.strip().splitlines() or ["no reason"])[-1])
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if "refused" in told:
        raise TooLarge(*told["refused"])
    return told


def main(kind: type[S], changes: Callable[[S], Change]) -> None:
    """Reads what is asked from standard input and prints the plan, or what does not fit. `kind` is the recipe's."""
    asked = json.loads(sys.stdin.read())
    torch.set_num_threads(asked["threads"])
    make_deterministic()  # imports much
    keep_freed_memory()
    keep_few_kernels()
    change = changes(parse(kind, asked["recipe"], trusted=True))
    machine, budget = Machine.at_hand(), asked["budget"]
    planned = plan(change(()), machine)
    if budget and planned.peak_bytes > budget:
        error = _refused(planned, fit(change, budget, machine, planned))
        print(json.dumps({"refused": [error.place, error.problem, error.hint]}))
    else:
        print(json.dumps(planned.json()))


def _refused(planned: Plan, found: Fitted) -> TooLarge:
    stage = planned.fullest
    most = max(stage.by_cause, key=lambda cause: stage.by_cause[cause])
    problem = (
        f"would take {gib(stage.peak_bytes)}, {gib(stage.by_cause[most])} of it {most}; there are {gib(found.budget)}"
    )
    if found.fits:
        hint = f"fits in {gib(found.after.peak_bytes)} with: {' '.join(map(quoted, found.assignments))}"
    elif found.assignments:
        hint = (
            f"nothing found is enough; {gib(found.after.peak_bytes)} with: {' '.join(map(quoted, found.assignments))}"
        )
    else:
        hint = "a smaller model, or a machine with more memory; --no-plan runs it all the same"
    return TooLarge(stage.name, problem, hint)


def keep(planned: dict[str, Any], folder: Path) -> None:
    """Put the prediction into the folder of a run, before it begins."""
    atomic_json(folder / NAME, planned)


def quoted(assignment: str) -> str:
    """An assignment as a shell takes it."""
    return f"'{assignment}'" if set(assignment) & set(" {}[]*?") else assignment


def gib(size: int) -> str:
    """Bytes for a person."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
