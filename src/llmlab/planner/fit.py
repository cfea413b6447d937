"""What would make a recipe fit into so much memory: changes of fields, the harmless ones first.

A micro-batch changes nothing but memory and a little time: the step is token-exact. Then come changes that cost time
(activations computed again), then those that change the update rule or its numbers, then those that train fewer
weights, and last those that change what the model reads. A field or a kind that this recipe does not know is passed
over. Each change is kept only where it makes the fullest stage smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llmlab.errors import InputError
from llmlab.planner.machine import Machine
from llmlab.planner.material import Life
from llmlab.planner.plan import Memo, Plan, plan

TRAINED = ("pretrain", "sft", "reward", "dpo")
Change = Callable[[Sequence[str]], Life]  # the recipe with these assignments


@dataclass(frozen=True)
class Fitted:
    """The assignments that were found, and the plan before and with them; `fits` whether it is enough."""

    budget: int
    assignments: tuple[str, ...]
    before: Plan
    after: Plan

    @property
    def fits(self) -> bool:
        return self.after.peak_bytes <= self.budget

    def json(self) -> dict[str, Any]:
        return {
            "budget": self.budget,
            "fits": self.fits,
            "assignments": list(self.assignments),
            "before": {name: self.before.json()[name] for name in ("peak_bytes", "seconds")},
            "after": {name: self.after.json()[name] for name in ("peak_bytes", "seconds")},
        }


def fit(change: Change, budget: int, machine: Machine | None = None, before: Plan | None = None) -> Fitted:
    """Find changes with which the plan's peak is at most `budget` bytes. Where none are enough, the best are told."""
    machine = machine or Machine.known()
    life = change(())
    memo = Memo()
    now = first = before or plan(life, machine, memo)
    taken: list[str] = []
    tried: set[str] = set()
    while now.peak_bytes > budget:
        step = _smaller(change, taken, now, tried, machine, memo)
        if step is None:
            break
        taken, now = step
    return Fitted(budget, tuple(taken), first, now)


def _smaller(
    change: Change, taken: list[str], now: Plan, tried: set[str], machine: Machine, memo: Memo
) -> tuple[list[str], Plan] | None:
    """The first change that makes the fullest stage smaller; None where there is no other."""
    for assignments in candidates(change(taken), now.fullest.name):
        if " ".join(assignments) in tried:
            continue
        tried.add(" ".join(assignments))
        paths = {one.partition("=")[0] for one in assignments}
        wanted = [*(one for one in taken if one.partition("=")[0] not in paths), *assignments]
        try:
            planned = plan(change(wanted), machine, memo)
        except InputError:  # no such field here, or a value that does not go with the others
            continue
        if planned.peak_bytes < now.peak_bytes - (now.peak_bytes >> 7):  # a change has to be worth its line
            return wanted, planned
    return None


def candidates(life: Life, stage: str) -> Iterator[tuple[str, ...]]:
    """What may make this stage smaller, in the order in which it is tried; assignments that go together."""
    section: Any = getattr(life, stage, None)
    if stage in TRAINED and section is not None:
        yield from _halved(f"{stage}.micro_batch", section.micro_batch)
    if stage == "ppo":
        yield from _halved("ppo.rolling.micro_batch", section.rolling.micro_batch)
        yield from _halved("ppo.measured", section.measured, least=16)
    if stage in (*TRAINED, "ppo"):
        yield (f"{stage}.training.activation_checkpointing=selective",)
        yield (f"{stage}.training.activation_checkpointing=full",)
        yield f"{stage}.training.clip=null", f"{stage}.training.in_backward=true"
        if getattr(section, "adapter", None) is not None:
            yield from ((f"{stage}.base_weights={held}",) for held in ("stored", "int8", "int4"))
        for optimizer in ("adamw8bit", "adafactor", "lion", "sgd"):
            yield (f"{stage}.training.optimizer={optimizer}",)
    if stage in ("sft", "dpo") and section.adapter is None:
        yield (f"{stage}.adapter={{kind: lora, rank: 16, alpha: 32}}",)
    if stage in TRAINED:
        yield from _halved(f"{stage}.batch_size", section.batch_size)
    if stage == "pretrain":
        length = section.length or (life.model.context if life.model is not None else 0)
        yield from _halved("pretrain.length", length, least=128)
    if stage == "ppo":
        yield from _halved("ppo.rolling.answers", section.rolling.answers, least=8)
    if life.dtype != "fp32":
        yield ("dtype=fp32",)  # kernels of bf16 products are kept by shape
    if stage == "quantize":
        yield from _halved("quantize.documents", section.documents or 64, least=8)


def _halved(path: str, value: int, least: int = 1) -> Iterator[tuple[str]]:
    while value // 2 >= least:
        value //= 2
        yield (f"{path}={value}",)


def read_size(text: str) -> int:
    """`4GB`, `512 MiB`, `3e9`: bytes. InputError for anything else."""
    units = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
    units |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
    plain = text.strip().lower().replace(" ", "")
    number = plain.rstrip("bkmgti")
    try:
        size = float(number) * units[plain[len(number) :]]
    except (ValueError, KeyError):
        raise InputError("--fit", f"{text!r} is no size of memory", "write it as 4GB or 3500MiB") from None
    if not 0 < size < 2**60:
        raise InputError("--fit", f"{text!r} is no size of memory", "write it as 4GB or 3500MiB")
    return int(size)
