"""The optimizer's step inside the backward pass (LOMO, Lv et al. 2023, arXiv 2306.09782).

A parameter is updated as soon as its gradient is whole, and the gradient is freed at once: no more than one is alive,
but for those that are still being added up (a table that is the head too is from the first to the last). The weights
come out bit for bit as those of an ordinary step, for rules look at one parameter at a time.

Two things cannot be had this way. The norm of the whole gradient is known only at the end, so nothing is clipped (LOMO
goes backward twice for it). And a gradient that several micro-batches share is never there as a whole.

A gradient that is not finite stops the training before its own parameter is touched. Others were updated by then, in
memory only: the last checkpoint is as it was.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import torch
from torch import Tensor, nn

from llmlab.errors import InputError
from llmlab.training.optimizer import Optimizer


class NotFiniteGradient(Exception):
    """A gradient that is no number; `norm` is what its norm was."""

    def __init__(self, name: str, norm: float) -> None:
        super().__init__(name)
        self.name, self.norm = name, norm


def refuse_ranks(place: str = "training.in_backward") -> NoReturn:
    """InputError: of several ranks none has the whole gradient while it goes backward."""
    problem = "updates a weight before the other ranks have said their gradients"
    raise InputError(place, problem, "set it to false, or start one process")


class InBackward:
    """Updates parameters while a loss goes backward."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._norms: dict[str, Tensor] = {}

    def require_one(self, micro_batches: Sequence[object]) -> None:
        """InputError for a step of several micro-batches."""
        if len(micro_batches) > 1:
            raise InputError(
                "training.in_backward",
                f"this step has {len(micro_batches)} micro-batches, whose gradients are one step's only together",
                "make micro_batch as large as batch_size, or set in_backward to false",
            )

    @contextmanager
    def updating(self) -> Iterator[None]:
        """A backward pass in here is a step. Raises `NotFiniteGradient` out of it."""
        self._norms = {}
        handles = [
            parameter.register_post_accumulate_grad_hook(self._hook(name))  # type: ignore[no-untyped-call]
            for name, parameter in self._optimizer.parameters.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def norm(self) -> Tensor | None:
        """That of the whole gradient of the last pass; None where no parameter had one."""
        norms = [self._norms[name] for name in self._optimizer.parameters if name in self._norms]
        return torch.linalg.vector_norm(torch.stack(norms)) if norms else None

    def _hook(self, name: str) -> Callable[[Tensor], None]:
        def update(parameter: Tensor) -> None:
            assert isinstance(parameter, nn.Parameter)
            assert parameter.grad is not None
            norm = torch.linalg.vector_norm(parameter.grad)
            if not math.isfinite(norm.item()):
                raise NotFiniteGradient(name, norm.item())
            self._norms[name] = norm
            self._optimizer.step_one(parameter)
            parameter.grad = None

        return update
