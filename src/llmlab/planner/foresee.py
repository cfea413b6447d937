"""What a run does with its plan: refuses what cannot fit, and keeps the prediction beside what is measured."""

from __future__ import annotations

from pathlib import Path

from llmlab.errors import InputError
from llmlab.planner.fit import Change, Fitted, fit
from llmlab.planner.machine import Machine
from llmlab.planner.plan import Plan, plan
from llmlab.runtime import atomic_json

NAME = "plan.json"


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


def foreseen(change: Change, budget: int | None = None, machine: Machine | None = None) -> Plan:
    """The plan of a recipe, which fits into `budget` bytes (this machine's memory unless told).

    Errors: TooLarge where it does not, naming the stage and what would make it fit.
    """
    machine = machine or Machine.known()
    planned = plan(change(()), machine)
    budget = memory_bytes() if budget is None else budget
    if budget and planned.peak_bytes > budget:
        raise _refused(planned, fit(change, budget, machine, planned))
    return planned


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


def keep(planned: Plan, folder: Path) -> None:
    """Put the prediction into the folder of a run, before it begins."""
    atomic_json(folder / NAME, planned.json())


def quoted(assignment: str) -> str:
    """An assignment as a shell takes it."""
    return f"'{assignment}'" if set(assignment) & set(" {}[]*?") else assignment


def gib(size: int) -> str:
    """Bytes for a person."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
