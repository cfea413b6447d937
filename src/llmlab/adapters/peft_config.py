"""`adapter_config.json` both ways: an adapter's settings as peft writes them, and what of peft's is not read.

What peft has not (bottlenecks), and what it cannot hold over a base of this architecture, is of llmlab's own type,
`LLMLAB_<KIND>`, which peft refuses by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from llmlab.adapters.base import BaseWeights
from llmlab.adapters.bottleneck import Bottleneck
from llmlab.adapters.dora import DoRA
from llmlab.adapters.ia3 import IA3
from llmlab.adapters.lora import LoRA, LowRankSection
from llmlab.adapters.part import AdapterPart
from llmlab.adapters.prefix import Prefix
from llmlab.adapters.prompt import Prompt
from llmlab.checkpoints.native import read_json
from llmlab.errors import InputError
from llmlab.recipe import parse

CONFIG = "adapter_config.json"
OURS = "LLMLAB_"
BASE_WEIGHTS = "base_weights"  # ours: peft ignores the key with a warning, and it is there for few-bit bases alone
SECTIONS: dict[str, type[AdapterPart]] = {
    "lora": LoRA,
    "dora": DoRA,
    "ia3": IA3,
    "prefix": Prefix,
    "prompt": Prompt,
    "bottleneck": Bottleneck,
}
TYPES = {"LORA": "lora", "IA3": "ia3", "PREFIX_TUNING": "prefix", "PROMPT_TUNING": "prompt"}
TYPES["P_TUNING"] = "prompt"  # a folder holds the embeddings that the network came to
READ = f"{', '.join(TYPES)} are"

# What peft can do to an adapter that changes its mathematics, and the value that means "not done".
PLAIN: dict[str, tuple[object, ...]] = {
    "bias": ("none",),
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
    "use_bdlora": (None, False),
    "num_transformer_submodules": (1, None),
}


@dataclass(frozen=True)
class AdapterConfig:
    """What `adapter_config.json` says: the base (a path or a name) and how it was held, the layout, the settings."""

    base: str
    layout: Literal["peft", "llmlab"]
    section: AdapterPart
    base_weights: BaseWeights = "fp32"


def read_config(folder: Path) -> AdapterConfig:
    """The config of an adapter folder, ours or peft's. What it asks for and is not read is refused by name."""
    config, place = read_json(folder / CONFIG), str(folder / CONFIG)
    kind = str(config.get("peft_type"))
    own = kind.startswith(OURS) and kind.removeprefix(OURS).lower() in SECTIONS
    if not own and kind not in TYPES:
        raise InputError(place, f"peft_type {config.get('peft_type')!r} is not read", READ)
    for field, plain in PLAIN.items():
        if field in config and config[field] not in plain:
            raise InputError(
                place, f"{field} {config[field]!r} is not read", "merge the adapter with peft, then open the model"
            )
    base, held = config.get("base_model_name_or_path"), config.get(BASE_WEIGHTS, "fp32")
    if not isinstance(base, str) or not base:
        raise InputError(place, "base_model_name_or_path names no base")
    if held not in get_args(BaseWeights):
        raise InputError(place, f"{BASE_WEIGHTS} {held!r} is not known", f"{', '.join(get_args(BaseWeights))} are")
    name = kind.removeprefix(OURS).lower() if own else TYPES[kind]
    if name == "lora" and config.get("use_dora", False):
        name = "dora"
    values = config.get("section") if own and name not in ("lora", "dora") else _settings(name, config)
    return AdapterConfig(base, "llmlab" if own else "peft", parse(SECTIONS[name], values, place), held)


def _settings(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that peft's fields tell; which linears are meant, the tensors do."""
    if name in ("lora", "dora"):
        return {
            "rank": config.get("r"),
            "alpha": config.get("lora_alpha"),
            "dropout": config.get("lora_dropout", 0.0),
            "scaling": "root_rank" if config.get("use_rslora", False) else "rank",
        }
    return {} if name == "ia3" else {"tokens": config.get("num_virtual_tokens")}


def low_rank(section: LowRankSection) -> dict[str, Any]:
    """peft's fields of LoRA and DoRA."""
    return {
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": section.alpha,
        "lora_dropout": section.dropout,
        "r": section.rank,
        "task_type": "CAUSAL_LM",
        "use_dora": section.kind == "dora",
        "use_rslora": section.scaling == "root_rank",
    }


def own(section: AdapterPart) -> dict[str, Any]:
    """The fields of llmlab's own type."""
    section = section.saved()
    return {"peft_type": f"{OURS}{section.kind.upper()}", "section": section.model_dump(mode="json")}
