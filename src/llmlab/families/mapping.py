"""Weight names both ways: a list of entries, each one tensor of theirs and one or more of ours."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor

from llmlab import families
from llmlab.errors import InputError, unknown
from llmlab.model.attention import GroupedQuery, MultiHead, MultiQuery
from llmlab.model.encoding import PositionPart
from llmlab.model.rotary import NTK, NoScaling, Rope, RopeInterleaved, ntk_base
from llmlab.model.transformer import Architecture, Local, Transformer
from llmlab.recipe import Section


@dataclass(frozen=True)
class Entry:
    """`theirs` holds the tensors `ours`, stacked along the output axis; `transposed` where theirs is [in, out].

    `rotary` names the number of heads whose rows are neighbours-paired in ours and halves-paired in theirs. `heads`
    names the number of heads where theirs stacks our tensors head by head, as [heads, parts, rows]. `shape` is theirs
    where it differs from [out, in]: it is read in that order.
    """

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False
    rotary: int = 0
    heads: int = 0
    shape: tuple[int, ...] | None = None

    def split(self, tensor: Tensor, shapes: Mapping[str, torch.Size]) -> list[Tensor]:
        """Their tensor as ours; a shape that does not fit is an error naming it."""
        wanted = [shapes[name] for name in self.ours]
        whole = torch.Size((sum(shape[0] for shape in wanted), *wanted[0][1:]))
        stored = torch.Size(self.shape or (tuple(reversed(whole)) if self.transposed else whole))
        if tensor.shape != stored:
            raise InputError(self.theirs, f"has shape {list(tensor.shape)}", f"{list(stored)} was expected")
        if self.shape:
            tensor = tensor.reshape(tuple(reversed(whole)) if self.transposed else whole)
        if self.transposed:
            tensor = tensor.T
        if self.heads:
            tensor = tensor.view(self.heads, len(self.ours), -1, *whole[1:]).transpose(0, 1).reshape(whole)
        parts = list(torch.split(tensor, [shape[0] for shape in wanted]))
        return [pair_neighbours(part, self.rotary) for part in parts] if self.rotary else parts

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Our tensors as theirs."""
        if self.rotary:
            parts = [pair_halves(part, self.rotary) for part in parts]
        tensor = torch.cat(list(parts)) if len(parts) > 1 else parts[0]
        if self.heads:
            rest = tensor.shape[1:]
            tensor = tensor.view(len(parts), self.heads, -1, *rest).transpose(0, 1).reshape(tensor.shape)
        if self.transposed:
            tensor = tensor.T
        return tensor.reshape(self.shape or tensor.shape).contiguous()


def known() -> list[str]:
    """The families that ship, by `model_type`."""
    return sorted(module.MODEL_TYPE for module in _modules())


def family(model_type: str, place: str = "model_type") -> ModuleType:
    name = model_type.replace("-", "_")
    if name in _files() and getattr(_module(name), "MODEL_TYPE", None) == model_type:
        return _module(name)
    raise unknown(place, model_type, known())


def _standing(module: ModuleType) -> tuple[bool, str, str]:
    return getattr(module, "REMOTE", False), str(module.PUBLISHED), module.MODEL_TYPE


def family_of(architecture: Architecture) -> ModuleType:
    """The family that can express this architecture; of several one that transformers opens by itself, and of these
    the one published first, since most programs open it.

    Errors: InputError saying which part keeps each family from it.
    """
    lacking: dict[str, list[str]] = {}
    for module in sorted(_modules(), key=_standing):
        try:
            written(module, architecture, 1)
        except InputError as error:
            lacking.setdefault(error.place, []).append(module.MODEL_TYPE)
        else:
            return module
    hint = "; ".join(f"{place} is not in {', '.join(names)}" for place, names in lacking.items())
    raise InputError("model", "no Hugging Face family has this combination of parts", hint)


def _files() -> set[str]:
    return {module.name for module in pkgutil.iter_modules(families.__path__)}


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{families.__name__}.{name}")


def _modules() -> list[ModuleType]:
    """Every file that is a family; the others hold what families share."""
    return [module for name in sorted(_files()) if hasattr(module := _module(name), "MODEL_TYPE")]


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
        result |= zip(entry.ours, entry.split(tensors[entry.theirs], shapes), strict=True)
    if left:
        raise InputError(
            sorted(left)[0], f"unknown tensor ({len(left)} in all) in the weights", "is this another family?"
        )
    return result


HEAD = "lm_head.weight"  # a family with another name for it says so in its own HEAD; this one is read besides


def settled(known: ModuleType, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Mapping[str, Any]:
    """The config, and what of this family only the weights tell: which heads there are, say."""
    settle = getattr(known, "settle", None)
    answer: Mapping[str, Any] = config if settle is None else settle(config, tensors)
    return answer


def from_hf(known: ModuleType, model: Transformer, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of `model` out of the tensors of this family."""
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    head = getattr(known, "HEAD", HEAD)
    if head not in tensors and HEAD in tensors:
        tensors = {head if name == HEAD else name: tensor for name, tensor in tensors.items()}
    for old, new in getattr(known, "RENAMED", {}).items():
        tensors = {re.sub(f"{re.escape(old)}$", new, name): tensor for name, tensor in tensors.items()}
    ignored = [*known.IGNORED, *([head, *getattr(known, "TIED", ())] if model.architecture.tied else [])]
    return to_ours(known.names(model.architecture), tensors, shapes, known.PREFIX, ignored)


def to_hf(known: ModuleType, architecture: Architecture, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under the names of this family."""
    return {entry.theirs: entry.join([state[name] for name in entry.ours]) for entry in known.names(architecture)}


def pair_halves(rows: Tensor, heads: int) -> Tensor:
    """Query or key rows from the neighbours-paired rotary layout (GGUF's llama) to the halves-paired one."""
    return rows.view(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def pair_neighbours(rows: Tensor, heads: int) -> Tensor:
    """The inverse of `pair_halves`."""
    return rows.view(heads, 2, -1, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


# ---------------------------------------------------------------- architectures both ways

P = TypeVar("P", bound=Section)
T = TypeVar("T")
# What a config need not carry: it changes training only.
TRAINING_ONLY = frozenset({"dropout", "initial_std"})


def expect(family_name: str, field: str, value: Section, *kinds: type[P]) -> P:
    """`value`, if it is of the kinds that this family has in this field; an `InputError` otherwise."""
    if not isinstance(value, kinds):
        kind = getattr(value, "kind", type(value).__name__)
        raise InputError(f"model.{field}", f"{kind} is not a part of {family_name}", "convert to llmlab's own format")
    return value


def chosen(config: Mapping[str, Any], field: str, table: Mapping[str, T], default: str) -> T:
    """What a config names in this field; a name outside the table is an `InputError`."""
    name = config.get(field, default)
    if name not in table:
        raise unknown(f"config.json: {field}", name, table)
    return table[name]


def only(config: Mapping[str, Any], **built: Any) -> None:
    """Refuse a switch that stands otherwise than the one way that is built; left out or null it stands so."""
    for field, value in built.items():
        if config.get(field) not in (None, value):
            got, wanted = json.dumps(config[field], default=str), json.dumps(value)
            raise InputError(f"config.json: {field}", f"{got[:80]} is not built", f"only {wanted} is")


def changed(section: P, **fields: Any) -> P:
    """A copy with these fields, checked anew."""
    return type(section)(**{**dict(section), **fields})


def written(known: ModuleType, architecture: Architecture, vocab_size: int) -> dict[str, Any]:
    """The config.json of this architecture. It is read again, and a field that does not come back as it went is an
    error naming it: that part the family does not have."""
    config: dict[str, Any] = known.write_config(_collapsed(architecture), vocab_size)
    back, _ = known.read_config(config)
    went, came = explicit(architecture), explicit(back)
    free = TRAINING_ONLY | set(getattr(known, "FREE", ()))
    for field in Architecture.model_fields:
        if field not in free and getattr(went, field) != getattr(came, field):
            lost = _lost(getattr(went, field), getattr(came, field))
            raise InputError(
                f"model.{field}{lost}", f"not a part of {known.MODEL_TYPE}", "convert to llmlab's own format instead"
            )
    return config


def _lost(went: Any, came: Any) -> str:
    """Which field below the first one did not come back."""
    if not isinstance(went, Section) or type(went) is not type(came):
        return ""
    names = [name for name in type(went).model_fields if getattr(went, name) != getattr(came, name)]
    return f".{names[0]}{_lost(getattr(went, names[0]), getattr(came, names[0]))}" if names else ""


def explicit(a: Architecture) -> Architecture:
    """The same architecture with defaults written out and one spelling where there are several: neighbours-paired
    rotary weights leave as halves-paired ones, NTK as the larger base that it is, key/value heads are counted, and
    local layers are some and not all."""
    a, head_dim = _collapsed(a), a.attention.width(a.dim)
    attention: Any = a.attention
    if isinstance(attention, MultiHead | GroupedQuery | MultiQuery):
        shared = {name: getattr(attention, name) for name in MultiHead.model_fields if name != "kind"}
        shared |= {"head_dim": head_dim, "output_bias": attention.biased_output}
        shared["scale"] = attention.scale or head_dim**-0.5
        shared["sinks"] = attention.sinks if attention.window else 0
        attention = GroupedQuery(kv_heads=attention.key_heads, **shared)
    feedforward = a.feedforward.model_copy(update={"width": a.feedforward.hidden_width(a.dim)})
    position, local = _position(a.position, head_dim), a.local
    if local is not None:
        own = position if local.position is None else _position(local.position, head_dim)
        layers = tuple(sorted(set(local.layers)))
        local = Local(layers=layers, window=local.window, position=None if own == position else own)
    parts = {"attention": attention, "feedforward": feedforward, "position": position, "local": local}
    return a.model_copy(update=parts)


def _collapsed(a: Architecture) -> Architecture:
    """The same architecture where no layer is local, or all are, as one kind of layer."""
    if a.local is None or not a.local.layers:
        return a.model_copy(update={"local": None})
    position = a.local.position or a.position
    if len(set(a.local.layers)) < a.layers or type(position) is not type(a.position):
        return a
    attention = a.attention.model_copy(update={"window": a.local.window, "sinks": 0})
    return a.model_copy(update={"local": None, "attention": attention, "position": position})


def _position(position: PositionPart, head_dim: int) -> PositionPart:
    if not isinstance(position, Rope | RopeInterleaved) or position.axes > 1:
        return position
    fields = position.model_dump(exclude={"kind"})
    if isinstance(position.scaling, NTK):
        base = ntk_base(position.base, position.turned(head_dim) // 2, position.scaling.by)
        fields |= {"base": base, "scaling": NoScaling()}
    return Rope(**fields)
