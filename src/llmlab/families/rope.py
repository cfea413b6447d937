"""Rotary positions in a config.json, both ways: `rope_parameters` as transformers 5 writes it, `rope_theta` and
`rope_scaling` as older versions do. Both are read and both are written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

from llmlab.errors import InputError, unknown
from llmlab.model.rotary import NTK, DynamicNTK, Linear, Llama3, Rope, RopeInterleaved, YaRN, ntk_base
from llmlab.recipe import parse

R = TypeVar("R", Rope, RopeInterleaved)
PLACE = "config.json: rope_parameters"
TYPES = ("default", "linear", "dynamic", "yarn", "llama3")


def stated(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a config says of its rotary positions; where both fields are there the older one counts, as in
    transformers."""
    return config.get("rope_scaling") or config.get("rope_parameters") or {}


def read_rope(
    fields: Mapping[str, Any], config: Mapping[str, Any], base: float, kind: type[R], fraction: float | None = None
) -> R:
    """The encoding that `fields` describe; `base` is the config's where they name none. `fraction` is the share of a
    head that turns where they name none, and None for a family in which whole heads turn.

    Errors: InputError for a rope type that is not built, a factor out of range, and a partial rotation of whole heads.
    """
    partial = fields.get("partial_rotary_factor")
    if fraction is None and (partial or config.get("partial_rotary_factor") or 1) != 1:
        raise InputError(f"{PLACE}.partial_rotary_factor", "whole heads turn in this family", "only 1.0 is built")
    share = partial if partial is not None else fraction or 1.0
    base = fields.get("rope_theta") or base
    return parse(kind, {"base": base, "fraction": share, "scaling": _scaling(fields, config)}, PLACE)


def write_rope(position: Rope | RopeInterleaved, head_dim: int) -> dict[str, Any]:
    """`rope_parameters` of heads of this width. A scaling that transformers has not is left out, to be found missing
    when the config is read again; NTK is a larger base and nothing else."""
    scaling, base = position.scaling, position.base
    if isinstance(scaling, NTK):
        base = ntk_base(base, position.turned(head_dim) // 2, scaling.by)
    fields: dict[str, Any] = {"rope_type": "default", "rope_theta": base}
    match scaling:
        case Linear() | DynamicNTK():
            fields |= {"rope_type": scaling.kind, "factor": scaling.by}
        case YaRN():
            fields |= {
                "rope_type": "yarn",
                "factor": scaling.by,
                "original_max_position_embeddings": scaling.trained,
                "beta_fast": scaling.fast,
                "beta_slow": scaling.slow,
                "truncate": scaling.whole,
            }
            if scaling.attention is not None:
                fields["attention_factor"] = scaling.attention
        case Llama3():
            fields |= {
                "rope_type": "llama3",
                "factor": scaling.by,
                "original_max_position_embeddings": scaling.trained,
                "low_freq_factor": scaling.low,
                "high_freq_factor": scaling.high,
            }
    return fields


def both(position: Rope | RopeInterleaved, head_dim: int) -> dict[str, Any]:
    """The fields of new and of old versions."""
    fields = write_rope(position, head_dim)
    return {"rope_parameters": fields, "rope_theta": fields["rope_theta"]} | older(fields)


def older(fields: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_scaling` beside these `rope_parameters`, where anything is scaled."""
    if (kind := fields["rope_type"]) in ("linear", "dynamic"):  # before 4.43 these two fields and no other
        return {"rope_scaling": {"type": kind, "factor": fields["factor"]}}
    return named(fields)


def named(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The same with `rope_type` for `type`, in families that are younger than that change."""
    scaled = fields["rope_type"] != "default"
    return {"rope_scaling": {name: value for name, value in fields.items() if name != "rope_theta"}} if scaled else {}


def _scaling(fields: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the scaling, by our names."""
    context = config["max_position_embeddings"]
    original = "original_max_position_embeddings"
    trained = config.get(original) or fields.get(original) or context
    match kind := fields.get("rope_type") or fields.get("type") or "default":
        case "default":
            return {"kind": "none"}
        case "linear":
            return {"kind": kind, "by": _needed(fields, "factor")}
        case "dynamic":
            return {"kind": kind, "by": _needed(fields, "factor"), "trained": context}
        case "yarn":
            by = fields.get("factor") or context / trained
            return {
                "kind": kind,
                "by": by,
                "trained": trained,
                "fast": fields.get("beta_fast") or 32.0,
                "slow": fields.get("beta_slow") or 1.0,
                "attention": _temperature(fields, by),
                "whole": fields.get("truncate", True),
            }
        case "llama3":
            low, high = _needed(fields, "low_freq_factor"), _needed(fields, "high_freq_factor")
            return {"kind": kind, "by": _needed(fields, "factor"), "trained": trained, "low": low, "high": high}
    raise unknown(f"{PLACE}.rope_type", kind, TYPES)


def _needed(fields: Mapping[str, Any], name: str) -> Any:
    if fields.get(name) is None:
        raise InputError(f"{PLACE}.{name}", f"is missing, which {fields.get('rope_type') or fields['type']} needs")
    return fields[name]


def _temperature(fields: Mapping[str, Any], by: float) -> float | None:
    """YaRN's factor of queries and keys where it is not the paper's: stated, or by DeepSeek's pair of scales."""
    if (stated := fields.get("attention_factor")) is not None:
        return float(stated)
    if not (fields.get("mscale") and fields.get("mscale_all_dim")):
        return None
    grown = 0.1 * math.log(max(by, 1.0))
    return float((grown * fields["mscale"] + 1) / (grown * fields["mscale_all_dim"] + 1))
