"""Weight names both ways: a list of entries, each one tensor of theirs and one or more of ours."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from llmlab import families
from llmlab.errors import InputError, unknown
from llmlab.model.transformer import Architecture


@dataclass(frozen=True)
class Entry:
    """`theirs` holds the tensors `ours`, stacked along the output axis; `transposed` where theirs is [in, out].

    `rotary` names the number of heads whose rows are neighbours-paired in ours and halves-paired in theirs.
    """

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False
    rotary: int = 0


def known() -> list[str]:
    """The families that ship, by file name."""
    names = {module.name for module in pkgutil.iter_modules(families.__path__)}
    return sorted(names - {"mapping"})


def family(model_type: str, place: str = "model_type") -> ModuleType:
    if model_type not in known():
        raise unknown(place, model_type, known())
    return importlib.import_module(f"llmlab.families.{model_type}")


def family_of(architecture: Architecture) -> ModuleType:
    """The first family that can express this architecture; the error says what each of them lacks."""
    reasons = []
    for name in known():
        module = family(name)
        try:
            module.write_config(architecture, 1)
        except InputError as error:
            reasons.append(f"{name}: {error.problem}")
        else:
            return module
    raise InputError("model", "no Hugging Face family has this combination of parts", "; ".join(reasons))


def to_ours(
    entries: Sequence[Entry],
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, torch.Size],
    prefix: str,
    ignored: Iterable[str],
) -> dict[str, Tensor]:
    """Their tensors under our names, shapes checked; a missing, unknown or misshapen tensor is an error.

    `prefix` is what a folder saved without its language-model wrapper lacks.
    """
    if not any(name.startswith(prefix) for name in tensors):
        tensors = {prefix + name: tensor for name, tensor in tensors.items()}
    left = {name for name in tensors if not name.endswith(tuple(ignored))}
    result: dict[str, Tensor] = {}
    for entry in entries:
        if entry.theirs not in tensors:
            raise InputError(entry.theirs, "this tensor is missing from the weights")
        left.discard(entry.theirs)
        tensor = tensors[entry.theirs]
        if entry.transposed:
            tensor = tensor.T
        sizes = [shapes[name][0] for name in entry.ours]
        if tensor.ndim == 0 or sum(sizes) != tensor.shape[0]:
            raise InputError(entry.theirs, f"has shape {list(tensor.shape)}", f"{sum(sizes)} rows were expected")
        for name, part in zip(entry.ours, torch.split(tensor, sizes), strict=True):
            if part.shape != shapes[name]:
                raise InputError(entry.theirs, f"has shape {list(part.shape)}", f"{list(shapes[name])} was expected")
            result[name] = pair_neighbours(part, entry.rotary) if entry.rotary else part
    if left:
        raise InputError(
            sorted(left)[0], f"unknown tensor ({len(left)} in all) in the weights", "is this another family?"
        )
    return result


def to_theirs(entries: Sequence[Entry], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under their names."""
    result = {}
    for entry in entries:
        parts = [pair_halves(state[name], entry.rotary) if entry.rotary else state[name] for name in entry.ours]
        tensor = torch.cat(parts) if len(parts) > 1 else parts[0]
        result[entry.theirs] = (tensor.T if entry.transposed else tensor).contiguous()
    return result


def pair_halves(rows: Tensor, heads: int) -> Tensor:
    """Query or key rows from the neighbours-paired rotary layout (GGUF's llama) to the halves-paired one."""
    return rows.view(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def pair_neighbours(rows: Tensor, heads: int) -> Tensor:
    """The inverse of `pair_halves`."""
    return rows.view(heads, 2, -1, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def refuse(family_name: str, **problems: bool) -> None:
    """Raise for the first part that the family does not have."""
    for part, lacking in problems.items():
        if lacking:
            raise InputError(f"model.{part}", f"not a part of {family_name}", "convert to llmlab's own format instead")
