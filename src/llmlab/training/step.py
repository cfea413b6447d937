"""The gradients of one optimizer step.

What each term is a mean of is added up over all micro-batches before the first forward pass; then they go forward and
backward one by one, every sum divided by the whole step's count. So any split gives the same gradient, and k
micro-batches need the memory of one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from llmlab.objectives.objective import Objective
from llmlab.runtime import derive
from llmlab.stages import Session
from llmlab.training.in_backward import InBackward, NotFiniteGradient

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
    """Leaves a step's gradients, clipped to the norm `clip`, in `parameters`; or, with `inside`, none: the parameters
    are then updated when this is through."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective[B],
        parameters: Mapping[str, nn.Parameter],
        clip: float | None,
        session: Session,
        inside: InBackward | None = None,
    ) -> None:
        self.model, self.objective, self.parameters = model, objective, parameters
        self.clip, self.session, self.inside = clip, session, inside

    def of(self, batches: Sequence[B], step: int) -> Made:
        """The gradients of these micro-batches. Raises `NotFinite`."""
        # Dropout's noise is keyed by the step, so there is no global generator to save, and no probe can shift it.
        torch.manual_seed(derive(self.session.seed, "noise", step))
        if self.inside is not None:
            self.inside.require_one(batches)
        counts = [self.objective.counts(batch) for batch in batches]
        totals, made = added(counts), Made(amounts=added([self.objective.amounts(batch) for batch in batches]))
        for number, (batch, count) in enumerate(zip(batches, counts, strict=True), 1):
            if any(count.values()):
                self._backward(batch, count, totals, made, f"micro-batch {number} of {len(batches)}")
        if self.inside is None:
            made.norm = self._clipped(batches)
        return made

    def _backward(self, batch: B, count: dict[str, float], totals: dict[str, float], made: Made, where: str) -> None:
        """One micro-batch forward and backward."""
        with self.session.autocast():
            terms = self.objective(self.model, batch)
        if terms.sums.keys() != count.keys():
            raise ValueError(f"counts has the terms {sorted(count)}, the objective gave {sorted(terms.sums)}")
        parts = [weight_of(self.objective, name) * terms.sums[name] / totals[name] for name in count if totals[name]]
        loss = torch.stack(parts).sum()
        if not math.isfinite(loss.item()):
            raise NotFinite(f"the loss is {loss.item()} in {where}", [batch])
        if self.inside is None:
            loss.backward()  # type: ignore[no-untyped-call]
        else:
            made.norm = self._updated(loss, self.inside, batch)
        for name, value in terms.sums.items():
            made.note(made.terms, name, value.item(), count[name])
        for name, (figure, weight) in terms.figures.items():
            made.note(made.figures, name, float(figure), weight)

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
        gradients: list[Tensor] = [p.grad for p in self.parameters.values() if p.grad is not None]
        if not gradients:
            return None
        norm = get_total_norm(gradients)
        if not math.isfinite(norm.item()):
            raise NotFinite(f"the norm of the gradient is {norm.item()}", batches)
        if self.clip is not None:
            clip_grads_with_norm_(self.parameters.values(), self.clip, norm)
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
