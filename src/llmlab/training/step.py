"""The gradients of one optimizer step.

What each term is a mean of is added up over all micro-batches before the first forward pass; then they go forward and
backward one by one, every sum divided by the whole step's count. So any split gives the same gradient, and k
micro-batches need the memory of one. Where there are several processes, each runs its share of them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor

from llmlab.objectives.objective import Objective
from llmlab.runtime import derive
from llmlab.stages import Session
from llmlab.training.in_backward import InBackward, NotFiniteGradient
from llmlab.training.parallel.ranks import Ranks

B = TypeVar("B")
Sums = dict[str, tuple[float, float]]  # name -> (sum, what it is the sum of so many of)


class NotFinite(Exception):
    """A loss or a gradient that is no number."""

    def __init__(self, problem: str, batches: Sequence[object]) -> None:
        super().__init__(problem)
        self.problem, self.batches = problem, batches


@dataclass
class Made:
    """What a step's gradients came from. `norm` is that of the whole gradient before clipping, None where no term had
    anything to learn; `amounts` is what went through."""

    norm: float | None = None
    terms: Sums = field(default_factory=dict)
    figures: Sums = field(default_factory=dict)
    amounts: dict[str, float] = field(default_factory=dict)

    def note(self, sums: Sums, name: str, value: float, weight: float) -> None:
        before, count = sums.get(name, (0.0, 0.0))
        sums[name] = before + value, count + weight


class Gradients(Generic[B]):
    """Leaves a step's gradients, clipped to the norm `clip`, in the parameters that these ranks own; or, with `inside`,
    none: the parameters are then updated when this is through."""

    def __init__(
        self,
        ranks: Ranks,
        objective: Objective[B],
        clip: float | None,
        session: Session,
        inside: InBackward | None = None,
    ) -> None:
        self.ranks, self.objective, self.clip, self.session, self.inside = ranks, objective, clip, session, inside

    def of(self, batches: Sequence[B], step: int) -> Made:
        """The gradients of these micro-batches. Raises `NotFinite`."""
        if self.inside is not None:
            self.inside.require_one(batches)
        counts = [self.objective.counts(batch) for batch in batches]
        totals = added(counts)
        mine, problem, where = Made(), "", 0
        for number, counted in self.ranks.share([any(count.values()) for count in counts]):
            # Dropout's noise is keyed by step and micro-batch, so there is no global generator to save, no probe can
            # shift it, and it does not matter which rank draws it.
            torch.manual_seed(derive(self.session.seed, "noise", step, number))
            value = self._backward(batches[number], counts[number], totals, mine if counted else None)
            if not math.isfinite(value) and not problem:
                problem, where = f"the loss is {value} in micro-batch {number + 1} of {len(batches)}", number
                if not self.ranks.lockstep:
                    break
        made = Made(amounts=added([self.objective.amounts(batch) for batch in batches]))
        for terms, figures, trouble, number in self.ranks.heard((mine.terms, mine.figures, problem, where)):
            if trouble:
                raise NotFinite(trouble, [batches[number]])
            for sums, others in ((made.terms, terms), (made.figures, figures)):
                for name, (value, weight) in others.items():
                    made.note(sums, name, value, weight)
        if any(totals.values()):
            self.ranks.add_gradients()
        made.norm = self._clipped(batches) if self.inside is None else mine.norm
        return made

    def _backward(self, batch: B, count: dict[str, float], totals: dict[str, float], made: Made | None) -> float:
        """One micro-batch forward and backward; its loss. What is not `made` of counts for nothing: its gradient is
        zero, and it is run for the sake of other ranks."""
        with self.session.autocast():
            terms = self.objective(self.ranks.model, batch)
        if terms.sums.keys() != count.keys():
            raise ValueError(f"counts has the terms {sorted(count)}, the objective gave {sorted(terms.sums)}")
        parts = [weight_of(self.objective, name) * terms.sums[name] / totals[name] for name in count if totals[name]]
        loss = torch.stack(parts).sum()
        value: float = loss.item()
        if self.inside is not None and made is not None and math.isfinite(value):
            made.norm = self._updated(loss, self.inside, batch)
        elif math.isfinite(value) or self.ranks.lockstep:
            (loss if made is not None else loss * 0).backward()  # type: ignore[no-untyped-call]
        if made is not None and math.isfinite(value):
            for name, sum_ in terms.sums.items():
                made.note(made.terms, name, sum_.item(), count[name])
            for name, (figure, weight) in terms.figures.items():
                made.note(made.figures, name, float(figure), weight)
        return value

    def _updated(self, loss: Tensor, inside: InBackward, batch: B) -> float | None:
        """Backward, the parameters updated on the way; the norm of the whole gradient."""
        try:
            with inside.updating():
                loss.backward()  # type: ignore[no-untyped-call]
        except NotFiniteGradient as error:
            raise NotFinite(f"the norm of the gradient of {error.name} is {error.norm}", [batch]) from None
        norm = inside.norm()
        if norm is not None and not math.isfinite(norm.item()):
            raise NotFinite(f"the norm of the gradient is {norm.item()}", [batch])
        return None if norm is None else norm.item()

    def _clipped(self, batches: Sequence[B]) -> float | None:
        """The norm of the whole gradient, which is then clipped; None where there is none."""
        norm = self.ranks.norm()
        if norm is None:
            return None
        if not math.isfinite(norm.item()):
            raise NotFinite(f"the norm of the gradient is {norm.item()}", batches)
        if self.clip is not None:
            self.ranks.clip(self.clip, norm)
        return norm.item()


def weight_of(objective: Objective[B], term: str) -> float:
    """A term's factor in the loss."""
    return objective.weights.get(term, 1.0)


def added(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Sums by name."""
    total: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total
