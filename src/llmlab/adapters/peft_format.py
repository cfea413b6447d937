"""Adapters as files: `adapter_model.safetensors` and `adapter_config.json` in peft's layout, heads beside them.

LoRA, DoRA, (IA)^3, prefix, prompt and P-tuning are peft's, where the base is of a family whose linears are one matrix
each (llama); names and row order are that family's, and peft opens the folder over the same base in transformers.
Where it is not (fused linears as in gpt2, parts that no family has), for positions that peft would move (learned ones
before virtual tokens), and for bottlenecks, the tensors keep llmlab's own names, and the config says so.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from llmlab.adapters.adapted import LinearAdapter
from llmlab.adapters.base import BaseWeights
from llmlab.adapters.beginning import VirtualAdapter
from llmlab.adapters.ia3 import IA3
from llmlab.adapters.lora import LowRankSection
from llmlab.adapters.part import (
    AdapterPart,
    adapter_parameters,
    adapter_parts,
    adapter_section,
    add_adapter,
    load_adapter,
)
from llmlab.adapters.peft_config import BASE_WEIGHTS, CONFIG, OURS, AdapterConfig, low_rank, own, read_config
from llmlab.adapters.virtual_format import VECTORS, described, in_peft, tensors_of, vectors_of
from llmlab.checkpoints.native import read_safetensors
from llmlab.errors import InputError
from llmlab.families.mapping import Entry, family_of, pair_halves, pair_neighbours
from llmlab.model.heads import ScalarHead
from llmlab.model.transformer import Architecture, Transformer
from llmlab.runtime import atomic_folder, atomic_json, write_safetensors

__all__ = ["CONFIG", "HEAD", "WEIGHTS", "AdapterConfig", "load_head", "load_peft", "read_config", "save_adapter"]
WEIGHTS, HEAD = "adapter_model.safetensors", "head.safetensors"
PREFIX = "base_model.model."
# Our parameter's name: peft's, and whether its rows are the linear's outputs.
PARTS = {
    "A": ("lora_A.weight", False),
    "B": ("lora_B.weight", True),
    "magnitude": ("lora_magnitude_vector", True),
    "l": ("ia3_l", True),
}


def save_adapter(
    folder: Path,
    model: Transformer,
    name: str,
    base: Path | str,
    head: ScalarHead | None = None,
    layout: Literal["auto", "peft"] = "auto",
    base_weights: BaseWeights = "fp32",
) -> None:
    """Write adapter `name` of `model`, whole or not at all. `base` is a folder (kept relative) or a known name, held
    in `base_weights` while the adapter was trained.

    `layout` "peft" refuses what peft cannot hold; "auto" falls back to llmlab's own.
    """
    section = adapter_section(model, name)
    if isinstance(section, VirtualAdapter):
        tensors, config = _virtual(model, name, section, layout)
    else:
        tensors, config = _linears(model, name, section, layout)
    config = {"base_model_name_or_path": _relative(base, folder) if isinstance(base, Path) else base, **config}
    if base_weights != "fp32":
        config[BASE_WEIGHTS] = base_weights
    with atomic_folder(folder) as work:
        atomic_json(work / CONFIG, config)
        write_safetensors(work / WEIGHTS, tensors)
        if head is not None:
            write_safetensors(work / HEAD, dict(head.state_dict()))


def load_peft(folder: Path, model: Transformer, name: str) -> None:
    """Put the adapter of `folder` on `model` as `name`; which linears it has is read from its tensors."""
    config = read_config(folder)
    tensors = read_safetensors(folder / WEIGHTS)
    if not tensors:
        raise InputError(str(folder / WEIGHTS), "holds no tensor")
    try:
        if isinstance(config.section, VirtualAdapter):
            tensors = vectors_of(tensors, model.architecture, config.section, config.layout == "peft")
            section: AdapterPart = config.section
        else:
            if config.layout == "peft":
                tensors = _ours(tensors, plain_entries(model.architecture), str(folder / WEIGHTS))
            section = _aimed(config.section, tensors)
            if isinstance(section, IA3):
                tensors = {key: tensor.flatten() for key, tensor in tensors.items()}
        add_adapter(model, name, section, seed=0)  # its numbers are replaced below
        load_adapter(model, name, tensors)
    except InputError as error:
        if error.place.startswith(str(folder)):
            raise
        raise InputError(str(folder), str(error), "is this the adapter of another base?") from None


def load_head(folder: Path, head: ScalarHead) -> None:
    """Fill a scalar head from an adapter folder."""
    place = folder / HEAD
    if not place.is_file():
        raise InputError(str(place), "no such file", "only reward models have a scalar head")
    tensors, mine = read_safetensors(place), head.state_dict()
    if {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in mine.items()}:
        raise InputError(str(place), f"holds {_shapes(tensors)}, the model needs {_shapes(mine)}")
    head.load_state_dict(tensors)


# ---------------------------------------------------------------- on linears


def _linears(
    model: Transformer, name: str, section: AdapterPart, layout: Literal["auto", "peft"]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and config of an adapter on linears."""
    parameters = {key: p.detach() for key, p in adapter_parameters(model, name).items()}
    plain = _plain(model.architecture, section, layout)
    if isinstance(section, LowRankSection):
        fields = low_rank(section)
        linears = sorted({key.rpartition(".")[0] for key in parameters})
        if plain is None:
            kind = f"{OURS}{section.kind.upper()}"
            return parameters, fields | {"peft_type": kind, "target_modules": linears}
        fields |= {"peft_type": "LORA", "target_modules": _targets(plain, linears)}
    elif isinstance(section, IA3) and plain is not None:
        inner = [path for path, part in adapter_parts(model, name).items() if getattr(part, "scales_inputs", False)]
        parameters = {
            key: tensor[None] if key.rpartition(".")[0] in inner else tensor[:, None]
            for key, tensor in parameters.items()
        }
        linears = [key.rpartition(".")[0] for key in parameters]
        fields = {
            "peft_type": "IA3",
            "task_type": "CAUSAL_LM",
            "inference_mode": True,
            "fan_in_fan_out": False,
            "init_ia3_weights": True,
            # Both by whole names: peft compares the two lists.
            "target_modules": sorted(_module(plain[path]) for path in linears),
            "feedforward_modules": sorted(_module(plain[path]) for path in inner),
        }
    else:
        return parameters, own(section)
    tensors = {}
    for key, tensor in parameters.items():
        path, _, part = key.rpartition(".")
        entry, (theirs, outputs) = plain[path], PARTS[part]
        if outputs and entry.rotary and len(tensor) > 1:
            tensor = pair_halves(tensor, entry.rotary)
        tensors[f"{PREFIX}{_module(entry)}.{theirs}"] = tensor
    return tensors, fields


def _plain(
    architecture: Architecture, section: AdapterPart, layout: Literal["auto", "peft"]
) -> dict[str, Entry] | None:
    """The family's entries, None where peft has no place for this adapter; "peft" then refuses by name."""
    if not isinstance(section, LowRankSection | IA3):
        if layout == "peft":
            raise InputError("adapter", f"peft has no {section.kind} adapters", "leave the layout to llmlab")
        return None
    try:
        return plain_entries(architecture)
    except InputError:
        if layout == "peft":
            raise
        return None


def _aimed(section: AdapterPart, tensors: Mapping[str, Tensor]) -> AdapterPart:
    """The section with exactly the linears that the tensors are of."""
    assert isinstance(section, LinearAdapter)
    paths = tuple(sorted({key.rpartition(".")[0] for key in tensors}))
    if isinstance(section, LowRankSection):
        return section.model_copy(update={"targets": paths})
    if isinstance(section, IA3) and all(tensor.ndim == 2 for tensor in tensors.values()):  # peft's: [out, 1], [1, in]
        inner = tuple(sorted(key.rpartition(".")[0] for key, tensor in tensors.items() if len(tensor) == 1))
        return section.model_copy(update={"inputs": inner, "outputs": tuple(p for p in paths if p not in inner)})
    return section


# ---------------------------------------------------------------- before every text


def _virtual(
    model: Transformer, name: str, section: VirtualAdapter, layout: Literal["auto", "peft"]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and config of virtual tokens: the vectors that training came to, without what made them."""
    flat = next(iter(adapter_parts(model, name).values())).flat().detach()  # type: ignore[operator]
    try:
        reason = in_peft(model.architecture)
        rotary = plain_entries(model.architecture)["blocks.0.attention.key"].rotary if reason is None else 0
    except InputError as error:
        reason, rotary = str(error), 0
    if reason is None:
        return tensors_of(flat, model.architecture, section, rotary), described(section, model.architecture)
    if layout == "peft":
        raise InputError("adapter", f"peft cannot hold these virtual tokens: {reason}", "leave the layout to llmlab")
    return {VECTORS: flat}, own(section)


# ---------------------------------------------------------------- names


def plain_entries(architecture: Architecture) -> dict[str, Entry]:
    """{our linear's path: its entry in the family's map}; refused where peft cannot hold an adapter of each."""
    family = family_of(architecture)
    weights = [
        e for e in family.names(architecture) if e.ours[0].startswith("blocks.") and e.ours[0].endswith(".weight")
    ]
    for entry in weights:
        if len(entry.ours) > 1 or entry.transposed:
            raise InputError(
                "adapter",
                f"{family.MODEL_TYPE} fuses or transposes {_module(entry)}: peft's layout cannot hold it",
                "merge the adapter first, then convert the whole model",
            )
    return {entry.ours[0].removesuffix(".weight"): entry for entry in weights}


def _module(entry: Entry) -> str:
    return entry.theirs.removesuffix(".weight")


def _targets(plain: Mapping[str, Entry], linears: list[str]) -> list[str]:
    """peft's `target_modules`: short endings where they mean exactly these linears, whole names otherwise."""
    chosen = {_module(plain[path]) for path in linears}
    endings = {module.rpartition(".")[2] for module in chosen}
    meant = {_module(entry) for entry in plain.values() if _module(entry).rpartition(".")[2] in endings}
    return sorted(endings if meant == chosen else chosen)


def _ours(tensors: Mapping[str, Tensor], plain: Mapping[str, Entry], place: str) -> dict[str, Tensor]:
    theirs = {
        f"{PREFIX}{_module(entry)}.{suffix}": (f"{path}.{part}", entry, outputs)
        for path, entry in plain.items()
        for part, (suffix, outputs) in PARTS.items()
    }
    result = {}
    for key, tensor in tensors.items():
        if key not in theirs:
            raise InputError(
                f"{place}: {key}", "is not the adapter of a linear of this model", "is this another family?"
            )
        ours, entry, outputs = theirs[key]
        if outputs and entry.rotary and len(tensor) > 1 and tensor.shape[0] % (2 * entry.rotary) == 0:
            tensor = pair_neighbours(tensor, entry.rotary)
        result[ours] = tensor
    return result


def _shapes(tensors: Mapping[str, Tensor]) -> str:
    return json.dumps({name: list(tensor.shape) for name, tensor in sorted(tensors.items())})


def _relative(base: Path, folder: Path) -> str:
    """From the adapter's folder, so that a run can be moved as a whole."""
    return os.path.relpath(base.resolve(), folder.resolve())
