"""A linear with parts on it, one of which a role picks: LoRA, DoRA, IA3 and bottlenecks are such parts.

    y = outputs(x, base(inputs(x)))

Most leave the inputs alone and add to the outputs. A part that can be said by weights alone may be merged into them.
"""

from abc import abstractmethod
from itertools import groupby
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from llmlab.adapters.part import AdapterPart, Draw, draws
from llmlab.errors import InputError
from llmlab.model.linear import Linear, Role, Wrapped
from llmlab.model.quantized import QuantizedLinear
from llmlab.model.transformer import Transformer

Base = Linear | QuantizedLinear
Weights = tuple[Tensor, Tensor | None]  # a weight [out, in] and a bias [out], float32


class LinearPart(nn.Module):
    """The trained part of one linear under one name."""

    section: AdapterPart
    scales_inputs: ClassVar[bool] = False  # whether `inputs` does anything

    def inputs(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., in], before the linear."""
        return x

    def outputs(self, x: Tensor, y: Tensor, linear: Any) -> Tensor:
        """[..., out]: what is said in place of y, which `linear` answered to `inputs(x)`."""
        return y

    def merged(self, weight: Tensor, bias: Tensor | None) -> Weights | None:
        """The linear and this part as one linear; None where no linear is both."""
        return None

    def unmerged(self, weight: Tensor, bias: Tensor | None) -> Weights:
        """What was given to `merged`, up to rounding."""
        raise NotImplementedError


class AdaptedLinear(Wrapped):
    """Takes the place of a linear; `role` picks the part of the whole batch, or of each row."""

    def __init__(self, base: "Base | KeptLinear") -> None:
        super().__init__()
        self.base = base
        self.adapters = nn.ModuleDict()

    def forward(self, x: Tensor, role: Role = None) -> Tensor:
        if not isinstance(role, tuple):
            part = self._part(role)
            return self.base(x) if part is None else part.outputs(x, self.base(part.inputs(x)), self.base)
        if len(role) != len(x):
            raise ValueError(f"{len(role)} roles for {len(x)} rows")
        # Rows of one adapter mostly stand together; runs keep it to one product each.
        runs, start = list[tuple[slice, LinearPart | None]](), 0
        for name, run in groupby(role):
            rows = slice(start, start + len(list(run)))
            runs.append((rows, self._part(name)))
            start = rows.stop
        into = x
        if any(part is not None and part.scales_inputs for _, part in runs):
            into = torch.cat([x[rows] if part is None else part.inputs(x[rows]) for rows, part in runs])
        y = self.base(into)
        said = [y[rows] if part is None else part.outputs(x[rows], y[rows], self.base) for rows, part in runs]
        return torch.cat(said)

    def _part(self, name: str | None) -> LinearPart | None:
        if name is None or name not in self.adapters:
            return None
        part = self.adapters[name]
        assert isinstance(part, LinearPart)
        return part


class KeptLinear(Wrapped):
    """A linear and a part that no role can leave out: what an adapter becomes that cannot be merged."""

    def __init__(self, base: "Base | KeptLinear", part: LinearPart) -> None:
        super().__init__()
        self.base, self.part = base, part
        self.in_features: int = base.in_features
        self.out_features: int = base.out_features

    @property
    def weight(self) -> Tensor:
        """That of the linear beneath, which is not all that is computed."""
        weight: Tensor = self.base.weight
        return weight

    @property
    def bias(self) -> Tensor | None:
        bias: Tensor | None = self.base.bias
        return bias

    def forward(self, x: Tensor, role: Role = None) -> Tensor:
        return self.part.outputs(x, self.base(self.part.inputs(x)), self.base)


class LinearAdapter(AdapterPart):
    """An adapter that is a part on each of some linears."""

    @abstractmethod
    def paths(self, model: Transformer) -> list[str]:
        """Module paths of the linears that it goes on."""

    @abstractmethod
    def part(self, path: str, linear: Any, draw: Draw) -> LinearPart:
        """A fresh part for the linear at `path`."""

    def put(self, model: Transformer, name: str, seed: int) -> None:
        for path in self.paths(model):
            linear = model.get_submodule(path)
            if not isinstance(linear, AdaptedLinear):
                assert isinstance(linear, Linear | QuantizedLinear | KeptLinear)
                linear = AdaptedLinear(linear).train(model.training)
                replace(model, path, linear)
            if name in linear.adapters:
                raise InputError("adapter", f"the model has an adapter {name!r} already")
            with device_of(linear.base):
                part = self.part(path, linear.base, draws(seed, self.kind, name, path))
            linear.adapters[name] = part.to(place_of(linear.base)).train(model.training)


def place_of(linear: Any) -> torch.device:
    """Where a linear's numbers lie, without making a weight of codes."""
    found = next((tensor for tensor in (*linear.parameters(), *linear.buffers())), None)
    return torch.device("cpu") if found is None else found.device


def device_of(linear: Any) -> torch.device:
    """The device on which new parts of a linear are made: without memory where it has none, else the CPU, whose
    generators are everybody's."""
    return torch.device("meta" if place_of(linear).type == "meta" else "cpu")


def linear_paths(model: Transformer, targets: Literal["all"] | tuple[str, ...], place: str) -> list[str]:
    """Module paths of the linears of the blocks, all or those of these name endings; an ending that no linear has is
    an error that names what there is."""
    linears = [
        path
        for path, module in model.blocks.named_modules(prefix="blocks")
        if isinstance(module, Wrapped | Linear | QuantizedLinear) and not path.endswith(".base")
    ]
    if targets == "all":
        return linears
    for ending in targets:
        if not any(_ends(path, ending) for path in linears):
            names = sorted({path.split(".", 2)[-1] for path in linears})
            raise InputError(place, f"no linear ends in {ending!r}", f"there are: {', '.join(names)}")
    return [path for path in linears if any(_ends(path, ending) for ending in targets)]


def adapted_linears(model: nn.Module) -> list[tuple[str, AdaptedLinear]]:
    """(path, linear) of every linear with parts on it."""
    return [(path, module) for path, module in model.named_modules() if isinstance(module, AdaptedLinear)]


def replace(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module in the place of another."""
    parent, _, child = path.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _ends(path: str, ending: str) -> bool:
    return path == ending or path.endswith(f".{ending}")
