"""The feed-forward's scalar function and its gate, by speaking for its linears."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmlab.errors import InputError
from llmlab.interpret.hooks import is_linear, leaves, saying, watching

GRID = torch.linspace(-6, 6, 121, dtype=torch.float64)
ONE = 70  # where the grid is 1


@dataclass(frozen=True)
class FeedForwardKind:
    """`activation` of the plain network or of the gate, the largest difference from it on [-6, 6], Swish's beta, the
    hidden width, and whether linears into and out of it have biases."""

    activation: str
    gated: bool
    error: float
    beta: float | None
    width: int
    biases: tuple[bool, bool]


def feedforward_of(module: nn.Module, dim: int) -> FeedForwardKind:
    """`module` in float64, [1, T, dim] -> [1, T, dim]. With one linear before the activation its response is read off.
    With two, one is held at 1 while the other runs over the grid: the one whose response bends is the gate."""
    x = torch.zeros(1, len(GRID), dim, dtype=torch.float64)
    linears = [leaf for leaf in leaves(module) if is_linear(leaf)]
    with watching(linears) as calls:
        y = module(x)
    into = [call.module for call in calls if call.args[0] is x]
    out = [call.module for call in calls if call.output is y]
    if len(out) != 1 or len(into) not in (1, 2):
        raise InputError("model.feedforward", f"{len(into)} linears in and {len(out)} out", "1 or 2 and 1 are read")

    def response(spoken: dict[nn.Module, Tensor]) -> Tensor:
        says: dict[nn.Module, Callable[[Tensor], Tensor]] = {
            linear: lambda y, value=value: value[None, :, None].expand_as(y)  # type: ignore[misc]
            for linear, value in spoken.items()
        }
        with saying(says), watching(out) as heard:
            module(x)
        inner: Tensor = heard[0].args[0][0, :, 0]
        return inner

    width = int(calls[-1].args[0].shape[-1])
    biases = (_biased(into[0]), _biased(out[0]))
    if len(into) == 1:
        return FeedForwardKind(*_fit(response({into[0]: GRID}), gated=False), width, biases)
    one = torch.ones_like(GRID)
    bent = [_fit(response({linear: GRID, other: one}), gated=True) for linear, other in (into, into[::-1])]
    gate = next((fit for fit in bent if fit[0] != "identity"), bent[0])
    return FeedForwardKind(*gate, width, biases)


def _biased(linear: nn.Module) -> bool:
    return any(parameter.ndim == 1 for parameter in linear.parameters(recurse=False))


def _fit(response: Tensor, gated: bool) -> tuple[str, bool, float, float | None]:
    """The nearest of the known functions. Swish's beta follows from its value at 1, which is sigmoid(beta)."""
    beta = float(torch.logit(response[ONE])) if 0 < response[ONE] < 1 else 1.0
    known = {
        "identity": GRID,
        "relu": F.relu(GRID),
        "gelu": F.gelu(GRID),
        "gelu_tanh": F.gelu(GRID, approximate="tanh"),
        "sigmoid": GRID.sigmoid(),
        "tanh": GRID.tanh(),
        "swish": GRID * (beta * GRID).sigmoid(),
    }
    errors = {name: float((response - values).abs().max()) for name, values in known.items()}
    name = min(errors, key=lambda name: errors[name])
    error = errors[name]
    return ("unknown" if error > 1e-3 else name), gated, error, round(beta, 6) if name == "swish" else None
