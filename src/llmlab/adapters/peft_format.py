"""Adapters as files: `adapter_model.safetensors` and `adapter_config.json` in peft's layout, heads beside them.

Where the base is of a family whose linears are one matrix each (llama), names and row order are that family's and peft
opens the folder over the same base in transformers. Where it is not (fused linears as in gpt2, parts that no family
has), the tensors keep llmlab's own names, and the config's `peft_type` says so, so that peft refuses it by name.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from llmlab.adapters.lora import LoRA, adapter_parameters, adapter_section, add_lora, load_adapter
from llmlab.checkpoints.native import read_json, read_safetensors, write_safetensors
from llmlab.errors import InputError
from llmlab.families.mapping import Entry, family_of, pair_halves, pair_neighbours
from llmlab.model.heads import ScalarHead
from llmlab.model.transformer import Architecture, Transformer
from llmlab.recipe import parse
from llmlab.runtime import atomic_folder, atomic_json

CONFIG, WEIGHTS, HEAD = "adapter_config.json", "adapter_model.safetensors", "head.safetensors"
OURS = "LLMLAB_LORA"
PREFIX = "base_model.model."
PARTS = {"A": "lora_A.weight", "B": "lora_B.weight"}

# What peft can do to an adapter that changes its mathematics, and the value that means "not done".
PLAIN: dict[str, tuple[object, ...]] = {
    "bias": ("none",),
    "use_dora": (False,),
    "use_rslora": (False,),
    "fan_in_fan_out": (False,),
    "lora_bias": (False,),
    "use_qalora": (False,),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": (None, []),
    "layer_replication": (None,),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None,),
}


@dataclass(frozen=True)
class AdapterConfig:
    """What `adapter_config.json` says: the base (a path, or a name), the layout, and the settings."""

    base: str
    layout: Literal["peft", "llmlab"]
    section: LoRA


def save_adapter(
    folder: Path,
    model: Transformer,
    name: str,
    base: Path | str,
    head: ScalarHead | None = None,
    layout: Literal["auto", "peft"] = "auto",
) -> None:
    """Write adapter `name` of `model`, whole or not at all. `base` is a folder (kept relative) or a known name.

    `layout` "peft" refuses an architecture whose adapters peft cannot hold; "auto" falls back to llmlab's names.
    """
    parameters = {key: p.detach() for key, p in adapter_parameters(model, name).items()}
    section = adapter_section(model, name)
    linears = sorted({key.rpartition(".")[0] for key in parameters})
    try:
        plain = plain_entries(model.architecture)
    except InputError:
        if layout == "peft":
            raise
        plain = None
    if plain is None:
        tensors = parameters
        described: dict[str, Any] = {"peft_type": OURS, "target_modules": linears}
    else:
        tensors = {}
        for key, tensor in parameters.items():
            path, _, part = key.rpartition(".")
            entry = plain[path]
            if part == "B" and entry.rotary:
                tensor = pair_halves(tensor, entry.rotary)  # B's rows are the linear's outputs
            tensors[f"{PREFIX}{_module(entry)}.{PARTS[part]}"] = tensor
        described = {"peft_type": "LORA", "target_modules": _targets(plain, linears)}
    config = {
        "base_model_name_or_path": _relative(base, folder) if isinstance(base, Path) else base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": section.alpha,
        "lora_dropout": section.dropout,
        "r": section.rank,
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
        **described,
    }
    with atomic_folder(folder) as work:
        atomic_json(work / CONFIG, config)
        write_safetensors(work / WEIGHTS, tensors)
        if head is not None:
            write_safetensors(work / HEAD, dict(head.state_dict()))


def read_config(folder: Path) -> AdapterConfig:
    """The config of an adapter folder, ours or peft's. What it asks for and is not plain LoRA is refused by name."""
    config, place = read_json(folder / CONFIG), str(folder / CONFIG)
    kind = config.get("peft_type")
    if kind not in ("LORA", OURS):
        raise InputError(place, f"peft_type {kind!r} is not read", "LORA is")
    for field, plain in PLAIN.items():
        if field in config and config[field] not in plain:
            raise InputError(
                place, f"{field} {config[field]!r} is not read", "merge the adapter with peft, then open the model"
            )
    values = {
        "rank": config.get("r"),
        "alpha": config.get("lora_alpha"),
        "dropout": config.get("lora_dropout", 0.0),
    }
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise InputError(place, "base_model_name_or_path names no base")
    return AdapterConfig(base, "peft" if kind == "LORA" else "llmlab", parse(LoRA, values, place))


def load_peft(folder: Path, model: Transformer, name: str) -> None:
    """Put the adapter of `folder` on `model` as `name`; which linears it has is read from its tensors."""
    config = read_config(folder)
    tensors = read_safetensors(folder / WEIGHTS)
    if config.layout == "peft":
        tensors = _ours(tensors, plain_entries(model.architecture), str(folder / WEIGHTS))
    endings = tuple(sorted({key.rpartition(".")[0] for key in tensors}))
    if not endings:
        raise InputError(str(folder / WEIGHTS), "holds no tensor")
    section = config.section.model_copy(update={"targets": endings})
    try:
        add_lora(model, name, section, seed=0)  # its numbers are replaced below
        load_adapter(model, name, tensors)
    except InputError as error:
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
        f"{PREFIX}{_module(entry)}.{suffix}": (f"{path}.{part}", entry)
        for path, entry in plain.items()
        for part, suffix in PARTS.items()
    }
    result = {}
    for key, tensor in tensors.items():
        if key not in theirs:
            raise InputError(
                f"{place}: {key}", "is not the adapter of a linear of this model", "is this another family?"
            )
        ours, entry = theirs[key]
        if ours.endswith(".B") and entry.rotary and tensor.shape[0] % (2 * entry.rotary) == 0:
            tensor = pair_neighbours(tensor, entry.rotary)
        result[ours] = tensor
    return result


def _shapes(tensors: Mapping[str, Tensor]) -> str:
    return json.dumps({name: list(tensor.shape) for name, tensor in sorted(tensors.items())})


def _relative(base: Path, folder: Path) -> str:
    """From the adapter's folder, so that a run can be moved as a whole."""
    return os.path.relpath(base.resolve(), folder.resolve())
