"""A guard against spikes: steps whose loss or gradient lies far above those before do not update.

A step is a spike if its loss, or the norm of its whole gradient before clipping, lies more than `deviations` robust
deviations (1.4826 times the median distance from the median, which is a normal law's standard deviation) above the
median of the last `window` steps that updated, or is no finite number. Values and steps decide, never the time, and all
that the guard remembers is in the checkpoint: a resumed training decides as the unbroken one.

skip        the batch is passed over, the step counts and changes nothing
roll_back   back to the last checkpoint, and on with the batches after the spike: those that led there are passed over
            (PaLM, Chowdhery et al. 2022, arXiv 2204.02311, section 5.1, which went back about 100 steps and passed over
            200 to 500 batches; there the same batches did no harm at other weights)

Only a spike upwards is one. Until the window is full the guard is silent, but for what is not finite.

False alarms, as shares of the steps, of independent noise at 8 deviations (200,000 draws): with a window of 50 below
1e-5 where it is normal, 1.5e-4 where its logarithm is (spread 0.3), 7.5e-4 with the tails of Student's t of 4 degrees;
with a window of 10 8e-4, 3e-3 and 3e-3.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from llmlab.errors import Diverged
from llmlab.recipe import KINDS, Section

_NORMAL = 1.4826  # of a normal law: its standard deviation over its median absolute deviation
_LEAST = 1e-3  # of the median: a window of all but equal values makes no spike of the next
_TOLD = 50  # events that are kept word for word; all are counted


class _Guard(Section):
    """What both share: when a step is a spike."""

    deviations: float = Field(8.0, gt=0.0, description="robust deviations above the median that make a spike")
    window: int = Field(50, ge=10, description="steps that updated and are looked back on; before, nothing is a spike")


class Skip(_Guard):
    """A step that is a spike does not update."""

    kind: Literal["skip"] = "skip"
    most: int = Field(5, gt=0, description="spikes within a window of steps; one more ends the training as diverged")


class RollBack(_Guard):
    """Back to the last checkpoint and past the batches that led to the spike. Before the first checkpoint: as skip."""

    kind: Literal["roll_back"] = "roll_back"
    most: int = Field(3, gt=0, description="times in the whole training; one more ends it as diverged")


SpikeGuard = Annotated[Skip | RollBack, *KINDS]


class Watch:
    """Judges step after step. `state` is all it knows: JSON, owned by the checkpoint."""

    def __init__(self, section: Skip | RollBack | None) -> None:
        self.section = section
        self.state: dict[str, Any] = {
            "seen": {},  # loss and gradient_norm of the last steps that updated
            "skipped_steps": 0,
            "roll_backs": 0,
            "passed_over_steps": 0,  # made and then undone, or never made, by going back
            "recent": [],  # steps that were skipped within the last window
            "events": [],
        }
        self._row: dict[str, float] = {}

    @property
    def goes_back(self) -> bool:
        return isinstance(self.section, RollBack)

    def spike(self, values: Mapping[str, float]) -> dict[str, float]:
        """What says that a step with these values (`loss`, `gradient_norm`) is a spike: the value and its limit. Empty
        where it is none; then its values are remembered."""
        if self.section is None:
            return {}
        for name, value in values.items():
            limit = self._limit(name)
            if not math.isfinite(value):
                return {"spike_not_finite": 1.0}
            if value > limit:
                return {f"spike_{name}": value, f"spike_{name}_limit": limit}
        for name, value in values.items():
            seen = self.state["seen"].setdefault(name, [])
            seen.append(value)
            del seen[: -self.section.window]
        return {}

    def _limit(self, name: str) -> float:
        assert self.section is not None
        seen = self.state["seen"].get(name, [])
        if len(seen) < self.section.window:
            return math.inf
        middle = statistics.median(seen)
        spread = _NORMAL * statistics.median(abs(value - middle) for value in seen)
        return float(middle + self.section.deviations * max(spread, _LEAST * abs(middle)))

    # ---------------------------------------------------------------- what came of it

    def skipped(self, step: int, found: Mapping[str, float]) -> None:
        """Note that step number `step` was passed over. Raises `Diverged` where that happens too often."""
        assert self.section is not None
        self.state["skipped_steps"] += 1
        recent = [one for one in self.state["recent"] if one > step - self.section.window] + [step]
        self.state["recent"] = recent
        self._note(step, {**found, "skipped": 1.0})
        if len(recent) > self.section.most:
            raise self._enough(step, found, f"{len(recent)} spikes within {self.section.window} steps")

    def rolled_back(self, step: int, to: int, found: Mapping[str, float], before: Mapping[str, Any]) -> None:
        """Note that the spike of step number `step` led back to the checkpoint of step `to`, whose guard remembered
        `before`. Raises `Diverged` where it happened too often."""
        assert self.section is not None
        self.state["roll_backs"] += 1
        self.state["passed_over_steps"] += step - to
        self.state["seen"], self.state["recent"] = before["seen"], before["recent"]
        self._note(step, {**found, "rolled_back_to": float(to)})
        if self.state["roll_backs"] > self.section.most:
            raise self._enough(step, found, f"{self.state['roll_backs']} spikes, each after a roll-back")

    def _note(self, step: int, found: Mapping[str, float]) -> None:
        self.state["events"] = [*self.state["events"], {"step": step, **found}][-_TOLD:]
        self._row |= found

    def _enough(self, step: int, found: Mapping[str, float], problem: str) -> Diverged:
        assert self.section is not None
        told = ", ".join(
            f"{name.removeprefix('spike_').replace('_', ' ')} {value:.4g}" for name, value in found.items()
        )
        hint = f"a lower learning rate, or spikes.most above {self.section.most} if they do no harm"
        return Diverged(f"step {step}", f"{problem}, the last one of {told}", hint)

    def row(self) -> dict[str, float]:
        """The event since the last row, for the row of the next step; then forgotten."""
        row, self._row = self._row, {}
        return row

    def figures(self) -> dict[str, Any]:
        """What the stage reports; nothing without a guard."""
        if self.section is None:
            return {}
        return {name: self.state[name] for name in ("skipped_steps", "roll_backs", "passed_over_steps", "events")}
