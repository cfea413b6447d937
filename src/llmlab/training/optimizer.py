"""What every optimizer is: rules over named parameters, stepped together or one by one, and state by name.

Added to torch's optimizers: which parameter gets which rule, one factor for all learning rates, state as named tensors
(a checkpoint needs no pickle and no order of parameters), and the bytes of that state before anything is allocated.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from llmlab.errors import InputError
from llmlab.recipe import Section

Named = dict[str, nn.Parameter]
Shapes = Mapping[str, Sequence[int]]  # of trained parameters, by name

COUNTER = 4  # bytes of a parameter's step count, a float32
PIECE = 1 << 20  # numbers that a rule of our own updates at once, so that its scratch does not grow with the tensor


class OptimizerPart(Section, ABC):
    """The settings of an optimizer."""

    lr: float = Field(1e-3, gt=0.0, description="learning rate at the schedule's top")

    @abstractmethod
    def build(self, model: nn.Module) -> "Optimizer": ...

    @abstractmethod
    def state_bytes(self, shapes: Shapes) -> int:
        """Bytes kept between steps for trained float32 parameters, each of which has had a gradient."""

    def scratch_bytes(self, shapes: Shapes) -> int:
        """The most that an update needs besides, for a moment."""
        return 0


class Optimizer:
    """One or more torch optimizers over named parameters, stepped together."""

    def __init__(self, parts: Iterable[torch.optim.Optimizer], names: Mapping[str, nn.Parameter]) -> None:
        self.parameters = dict(names)
        self._parts = list(parts)
        self._name_of = {id(parameter): name for name, parameter in names.items()}
        self._home_of = {id(parameter): (part, group) for part, group, parameter in self._members()}
        self._rates = [[group["lr"] for group in part.param_groups] for part in self._parts]

    def step(self) -> None:
        for part in self._parts:
            part.step()

    def step_one(self, parameter: nn.Parameter) -> None:
        """The same update of one parameter alone: no rule here looks at two at once."""
        part, group = self._home_of[id(parameter)]
        groups = part.param_groups
        part.param_groups = [{**group, "params": [parameter]}]
        try:
            part.step()
        finally:
            part.param_groups = groups

    def home_of(self, parameter: nn.Parameter) -> tuple[torch.optim.Optimizer, dict[str, Any]]:
        """The rule of a parameter, and the group with its settings."""
        return self._home_of[id(parameter)]

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Meanwhile the parameters are float32."""
        yield

    def finish(self) -> None:
        """They are from now on."""

    def zero_grad(self) -> None:
        for part in self._parts:
            part.zero_grad(set_to_none=True)

    def set_scale(self, scale: float) -> None:
        """Every learning rate becomes `scale` times the one in the settings."""
        for part, rates in zip(self._parts, self._rates, strict=True):
            for group, rate in zip(part.param_groups, rates, strict=True):
                group["lr"] = rate * scale

    def state(self) -> dict[str, Tensor]:
        """Moments and counters as `<parameter>:<what>`; a parameter that never had a gradient has none."""
        return {
            f"{self._name_of[id(parameter)]}:{key}": value
            for part, _, parameter in self._members()
            for key, value in part.state.get(parameter, {}).items()
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the state of `state()`. A name that belongs to no parameter here is an `InputError`."""
        left = dict(tensors)
        for part, _, parameter in self._members():
            prefix = self._name_of[id(parameter)] + ":"
            mine = {name: left.pop(name) for name in list(left) if name.startswith(prefix)}
            if mine:
                part.state[parameter] = {
                    # Counters stay where torch keeps them; moments lie beside their parameter.
                    name.removeprefix(prefix): value.clone()
                    if value.ndim == 0
                    else value.to(parameter.device, copy=True)
                    for name, value in mine.items()
                }
        if left:
            raise InputError("optimizer state", f"{next(iter(left))!r} belongs to no trained parameter of this model")

    def _members(self) -> Iterator[tuple[torch.optim.Optimizer, dict[str, Any], nn.Parameter]]:
        for part in self._parts:
            for group in part.param_groups:
                for parameter in group["params"]:
                    yield part, group, parameter


class Rule(torch.optim.Optimizer, ABC):
    """A rule of our own: parameters are updated one after another, each by what it alone has."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update(parameter, parameter.grad, self.state[parameter], group)

    @abstractmethod
    def update(self, parameter: Tensor, gradient: Tensor, state: dict[str, Tensor], group: Mapping[str, Any]) -> None:
        """Change `parameter` in place, and `state`, which is empty the first time."""


# ---------------------------------------------------------------- which parameters


def trained(model: nn.Module) -> Named:
    """The parameters that want a gradient, by name; a shared one once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def is_hidden(name: str, shape: Sequence[int]) -> bool:
    """Whether it is a 2-D matrix of a block: what lies between embedding and head, tied or free."""
    return len(shape) == 2 and "blocks" in name.split(".")


def hidden_matrices(model: nn.Module) -> Named:
    """The trained 2-D matrices of the blocks."""
    return {name: p for name, p in trained(model).items() if is_hidden(name, p.shape)}


def hidden_shapes(shapes: Shapes) -> tuple[Shapes, Shapes]:
    """Those of the blocks' matrices, and the others."""
    inside = {name: shape for name, shape in shapes.items() if is_hidden(name, shape)}
    return inside, {name: shape for name, shape in shapes.items() if name not in inside}


def by_decay(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Groups: matrices decay, norms and biases do not. A group without members is left out."""
    every = list(parameters)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in every if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in every if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def numbers(shapes: Shapes) -> int:
    """How many numbers parameters of these shapes hold."""
    return sum(prod(shape) for shape in shapes.values())


def largest(shapes: Shapes) -> int:
    """Numbers of the largest, 0 where there is none."""
    return max((prod(shape) for shape in shapes.values()), default=0)
