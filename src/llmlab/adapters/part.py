"""What every adapter is: settings that put small trained parts on a model from outside, each under a name.

A part is picked by the role of a call: no role, or one that names no adapter, is the frozen base. That is how one base
serves policy, critic, reward model and reference at once (Hydra-RLHF, Santacroce et al. 2023, arXiv 2309.00754).
Whatever holds parts is a `Holder`: its `adapters` has them by name. There are two: a linear (`adapted.py`), and what
stands before every text (`beginning.py`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor, nn

from llmlab.errors import InputError
from llmlab.model.transformer import Architecture, Transformer
from llmlab.recipe import Section
from llmlab.runtime import generator

Draw = Callable[[str], Generator]  # the generator of a parameter, by its name


class AdapterPart(Section, ABC):
    """The settings of one kind of adapter."""

    kind: str
    apart: ClassVar[bool] = True  # whether its numbers lie beside the base, which other roles may then share

    def check(self, architecture: Architecture) -> None:
        """`InputError` for an architecture that it cannot go with."""

    def saved(self) -> "AdapterPart":
        """The settings of what a folder holds: without what is for training alone."""
        return self

    @abstractmethod
    def put(self, model: Transformer, name: str, seed: int) -> None:
        """Put a fresh one on the model; what learns is the caller's to say."""


@runtime_checkable
class Holder(Protocol):
    """A module on whose call a role picks one of its `adapters`."""

    adapters: nn.ModuleDict


def add_adapter(model: Transformer, name: str, section: AdapterPart, seed: int) -> None:
    """Put a fresh adapter `name` on the model and freeze everything else.

    Its numbers are keyed by (seed, kind, adapter name, parameter name): other adapters do not move them. One that only
    chooses among the model's own parameters puts nothing on, and lets those learn.
    """
    if not name or "." in name:
        raise InputError("adapter", f"{name!r} is no name for an adapter", "letters without a dot")
    section.check(model.architecture)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    section.put(model, name, seed)
    if section.apart:
        train_only(model, [name])


def draws(seed: int, kind: str, name: str, path: str) -> Draw:
    """Generators of the parameters of the part at `path`."""
    return lambda parameter: generator(seed, kind, name, f"{path}.{parameter}")


@torch.no_grad()
def uniform(tensor: Tensor, bound: float, random: Generator) -> None:
    """Fill with uniform numbers in +-bound; nothing to do without memory."""
    if not tensor.is_meta:
        tensor.uniform_(-bound, bound, generator=random)


@torch.no_grad()
def normal(tensor: Tensor, deviation: float, random: Generator) -> None:
    """Fill with normal numbers; nothing to do without memory."""
    if not tensor.is_meta:
        tensor.normal_(0.0, deviation, generator=random)


# ---------------------------------------------------------------- looking at a model's adapters


def holders(model: nn.Module) -> Iterator[tuple[str, nn.ModuleDict]]:
    """(path, parts by name) of everything that holds parts."""
    for path, module in model.named_modules():
        if isinstance(module, Holder) and isinstance(module.adapters, nn.ModuleDict):
            yield path, module.adapters


def adapter_names(model: nn.Module) -> list[str]:
    """Names of the adapters on a model, sorted."""
    return sorted({name for _, parts in holders(model) for name in parts})


def adapter_parts(model: nn.Module, name: str) -> dict[str, nn.Module]:
    """{path of its holder: part} of one adapter; an unknown name is an `InputError`."""
    found = {path: parts[name] for path, parts in holders(model) if name in parts}
    if not found:
        there = ", ".join(adapter_names(model)) or "none"
        raise InputError("adapter", f"the model has no adapter {name!r}", f"it has: {there}")
    return found


def adapter_parameters(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """{`<holder's path>.<parameter>`: parameter} of one adapter."""
    parts = adapter_parts(model, name).items()
    return {f"{path}.{key}": parameter for path, part in parts for key, parameter in part.named_parameters()}


def adapter_section(model: nn.Module, name: str) -> AdapterPart:
    """The settings that an adapter on a model was made with."""
    section = next(iter(adapter_parts(model, name).values())).section
    assert isinstance(section, AdapterPart)
    return section


def train_only(model: nn.Module, names: Iterable[str]) -> None:
    """Freeze everything but the adapters named."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name in names:
        for parameter in adapter_parameters(model, name).values():
            parameter.requires_grad_(True)


@torch.no_grad()
def load_adapter(model: Transformer, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Fill the adapter `name` from {parameter: tensor}; a missing, unknown or misshapen tensor is an error."""
    parameters = adapter_parameters(model, name)
    if missing := sorted(parameters.keys() - tensors.keys()):
        raise InputError(f"adapter {name!r}", f"tensor {missing[0]} is missing ({len(missing)} in all)")
    if extra := sorted(tensors.keys() - parameters.keys()):
        raise InputError(f"adapter {name!r}", f"tensor {extra[0]} belongs to nothing here ({len(extra)} in all)")
    for key, parameter in parameters.items():
        if tensors[key].shape != parameter.shape:
            raise InputError(
                f"adapter {name!r}",
                f"{key} has shape {tuple(tensors[key].shape)}, the model needs {tuple(parameter.shape)}",
            )
        parameter.copy_(tensors[key])


def copy_adapter(model: Transformer, source: str, target: str) -> None:
    """Give adapter `target` the numbers of `source`; both have the same shapes."""
    load_adapter(
        model, target, {key: value.detach().clone() for key, value in adapter_parameters(model, source).items()}
    )
