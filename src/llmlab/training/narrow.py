"""Weights that are bfloat16 while they are trained, so that products need no cast and gradients take half the bytes.

An update is often smaller than half of bfloat16's spacing and would be rounded away, step after step (Micikevicius et
al. 2018, arXiv 1710.03740). Two remedies, each with its cost in bytes a weight beside the two of bfloat16:

split       2   the 16 bits that rounding took away are kept beside the weight, so the optimizer works on float32 as if
                nothing had happened: a master copy in float32 would hold the upper half twice
stochastic  0   the updated weight is rounded up or down by chance, as near as it lies, so that it is right on average
                (Gupta et al. 2015, arXiv 1502.02551; Zamirai et al. 2020, arXiv 2010.06192)

Who looks at the model (evaluation, the end) finds float32 again, with the values that were computed with.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from llmlab.model import kernels
from llmlab.recipe import KINDS, Section
from llmlab.runtime import generator
from llmlab.training.optimizer import PIECE, Optimizer


class _Weights(Section, ABC):
    @abstractmethod
    def held(self, optimizer: Optimizer, seed: int) -> Optimizer:
        """The optimizer over weights that are held so. Their parameters change their type here."""


class Fp32(_Weights):
    """float32: products in bfloat16 cast them each time."""

    kind: Literal["fp32"] = "fp32"

    def held(self, optimizer: Optimizer, seed: int) -> Optimizer:
        return optimizer


class Bf16(_Weights):
    """bfloat16, of a model that is trained whole."""

    kind: Literal["bf16"] = "bf16"
    rounding: Literal["split", "stochastic"] = Field(
        "split", description="split: the bits that rounding takes away are kept; stochastic: rounded by chance"
    )

    def held(self, optimizer: Optimizer, seed: int) -> Optimizer:
        return Narrow(optimizer, self.rounding, seed)


Weights = Annotated[Fp32 | Bf16, *KINDS]


class Narrow(Optimizer):
    """Another optimizer over parameters that are bfloat16 between its steps: each is float32 while it is updated."""

    def __init__(self, inner: Optimizer, rounding: Literal["split", "stochastic"], seed: int) -> None:
        self.parameters = inner.parameters
        self._inner, self._seed, self._stochastic = inner, seed, rounding == "stochastic"
        self._name = {id(parameter): name for name, parameter in self.parameters.items()}
        self._low: dict[str, Tensor] = {}
        self._steps: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            high, low = split(parameter.data)
            if self._stochastic:
                self._steps[name] = torch.tensor(0.0)
            else:
                self._low[name] = low
            parameter.data = high

    def step(self) -> None:
        for parameter in self.parameters.values():
            if parameter.grad is not None:
                self.step_one(parameter)

    def step_one(self, parameter: nn.Parameter) -> None:
        name, high, gradient = self._name[id(parameter)], parameter.data, parameter.grad
        assert gradient is not None
        parameter.grad = None
        if not self._stochastic and self._at_once(parameter, gradient, self._low[name]):
            return
        parameter.data = high.float() if self._stochastic else joined(high, self._low[name])
        parameter.grad = gradient.float()
        self._inner.step_one(parameter)
        wide, parameter.grad = parameter.data, None
        parameter.data = high
        if self._stochastic:
            draw = generator(self._seed, "rounding", name, str(int(self._steps[name])))
            high.copy_(by_chance(wide, draw))
            self._steps[name] += 1
        else:
            upper, lower = split(wide)
            high.copy_(upper)
            self._low[name].copy_(lower)

    def _at_once(self, parameter: nn.Parameter, gradient: Tensor, low: Tensor) -> bool:
        """torch's fused AdamW by the kernel, which reads and writes each half where it lies; False where it cannot."""
        part, group = self._inner.home_of(parameter)
        if type(part) is not torch.optim.AdamW or parameter.device.type != "cpu" or kernels.available() is not None:
            return False
        state = part.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = (torch.zeros_like(parameter, dtype=torch.float32) for _ in range(2))
        state["step"] += 1
        (first, second), count = group["betas"], float(state["step"])
        torch.ops.llmlab.adamw(
            parameter.data, low, gradient, state["exp_avg"], state["exp_avg_sq"],
            group["lr"] / (1 - first**count), 1 - group["lr"] * group["weight_decay"],
            first, second, (1 - second**count) ** -0.5, group["eps"],
        )  # fmt: skip
        return True

    def zero_grad(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    def set_scale(self, scale: float) -> None:
        self._inner.set_scale(scale)

    def state(self) -> dict[str, Tensor]:
        extra = {f"{name}:low": low for name, low in self._low.items()}
        return self._inner.state() | extra | {f"{name}:rounded": count for name, count in self._steps.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        left = dict(tensors)
        for kept, what in ((self._low, "low"), (self._steps, "rounded")):
            for name in kept:
                kept[name].copy_(left.pop(f"{name}:{what}"))
        self._inner.load(left)

    @contextmanager
    def exact(self) -> Iterator[None]:
        high = {name: parameter.data for name, parameter in self.parameters.items()}
        self.finish()
        try:
            yield
        finally:
            for name, parameter in self.parameters.items():
                parameter.data = high[name]

    def finish(self) -> None:
        for parameter in self.parameters.values():
            parameter.data = parameter.data.float()


# ---------------------------------------------------------------- halves of a float32


def split(wide: Tensor) -> tuple[Tensor, Tensor]:
    """The bfloat16 next to each float32 (of two equally near the one farther from zero), and the int16 that the bits of
    the float32 lie above it: together they are the float32 again."""
    high, low = torch.empty_like(wide, dtype=torch.bfloat16), torch.empty_like(wide, dtype=torch.int16)
    parts = (torch.split(tensor.view(-1), PIECE) for tensor in (wide.contiguous(), high, low))
    for bits, upper, lower in zip(*parts, strict=True):
        whole = bits.view(torch.int32)
        lower.copy_(whole)  # the lower 16 bits, as a signed number
        upper.view(torch.int16).copy_((whole - lower) >> 16)
    return high, low


def joined(high: Tensor, low: Tensor) -> Tensor:
    """float32 of what `split` made."""
    wide = torch.empty_like(high, dtype=torch.float32)
    parts = (torch.split(tensor.view(-1), PIECE) for tensor in (wide, high, low))
    for whole, upper, lower in zip(*parts, strict=True):
        whole.view(torch.int32).copy_((upper.view(torch.int16).int() << 16) + lower)
    return wide


def by_chance(wide: Tensor, random: torch.Generator) -> Tensor:
    """bfloat16 above or below each float32, the nearer the likelier: on average the float32 itself."""
    high = torch.empty_like(wide, dtype=torch.bfloat16)
    for bits, upper in zip(torch.split(wide.view(-1), PIECE), torch.split(high.view(-1), PIECE), strict=True):
        noise = torch.randint(1 << 16, bits.shape, generator=random, dtype=torch.int32).to(bits.device)
        upper.view(torch.int16).copy_((bits.view(torch.int32) + noise) >> 16)
    return high
