"""A plan for a person: a line a stage, and by cause what the fullest one holds."""

from __future__ import annotations

from llmlab.planner.fit import Fitted
from llmlab.planner.foresee import gib, quoted
from llmlab.planner.plan import Plan


def page(plan: Plan, fitted: Fitted | None = None) -> str:
    """The plan, and where one was looked for, what fits."""
    lines = [
        f"{plan.parameters:,} parameters, {plan.trained:,} of them learn; {plan.flops:.2e} floating-point operations",
        "",
        f"{'stage':<10} {'memory':>10} {'time':>10}  mostly",
    ]
    for stage in plan.stages:
        largest = sorted(stage.by_cause.items(), key=lambda cause: -cause[1])[:3]
        mostly = ", ".join(f"{name} {gib(size)}" for name, size in largest)
        about = "~" if stage.rough else ""
        lines.append(f"{stage.name:<10} {gib(stage.peak_bytes):>10} {about + clock(stage.seconds):>10}  {mostly}")
    lines += [f"{'in all':<10} {gib(plan.peak_bytes):>10} {clock(plan.seconds):>10}", ""]
    if plan.stages:
        fullest = plan.fullest
        lines.append(f"{fullest.name} holds most:")
        for name, size in sorted(fullest.by_cause.items(), key=lambda cause: -cause[1]):
            lines.append(f"  {name:<12} {gib(size):>10}")
    return "\n".join([*lines, *([] if fitted is None else ["", *_fitted(fitted)])])


def _fitted(found: Fitted) -> list[str]:
    if not found.assignments:
        least = f"does not fit; nothing that was tried makes it smaller than {gib(found.after.peak_bytes)}"
        fits = "fits as it is" if found.fits else least
        return [f"{gib(found.budget)}: {fits}"]
    end = (
        "fits with"
        if found.fits
        else f"does not fit; the least that was reached is {gib(found.after.peak_bytes)}, with"
    )
    lines = [f"{gib(found.budget)}: {end}", *(f"  {quoted(one)}" for one in found.assignments)]
    before, after = found.before, found.after
    memory = f"memory {gib(before.peak_bytes)} -> {gib(after.peak_bytes)}"
    return [*lines, f"  {memory}, time {clock(before.seconds)} -> {clock(after.seconds)}"]


def clock(seconds: float | None) -> str:
    """Seconds for a person."""
    if seconds is None:
        return "not known"
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
