"""Qwen1.5, Qwen2 and Qwen2.5: LLaMA's layout with biases on queries, keys and values, and layers that see a window
where the config says so (Yang et al. 2024, arXiv 2407.10671)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmlab.errors import InputError, unknown
from llmlab.families import llama
from llmlab.families.mapping import changed
from llmlab.model.transformer import Architecture, Local

MODEL_TYPE = "qwen2"
PUBLISHED = "2024-02"  # Qwen1.5
PREFIX, IGNORED, names = llama.PREFIX, llama.IGNORED, llama.names
DEFAULTS = {
    "max_position_embeddings": 32_768,
    "num_key_value_heads": 32,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
FIXED = {"attention_bias": True, "mlp_bias": False}
GLOBAL, LOCAL = "full_attention", "sliding_attention"


def read_config(config: Mapping[str, Any]) -> tuple[Architecture, int]:
    """A Hugging Face config.json as (architecture, vocab_size)."""
    whole = {**DEFAULTS, **config, **FIXED}
    plain = llama.read(whole)
    return windowed(changed(plain, attention=changed(plain.keyed, output_bias=False)), whole), config["vocab_size"]


def write_config(architecture: Architecture, vocab_size: int) -> dict[str, Any]:
    """The config.json of this architecture, or an error naming the part that Qwen2 does not have."""
    a = architecture
    config = llama.write(MODEL_TYPE, "Qwen2ForCausalLM", a, vocab_size)
    if config["head_dim"] * a.keyed.heads == a.dim:
        del config["head_dim"]  # older versions know no other
    return config | llama.rotary(MODEL_TYPE, a) | windows(MODEL_TYPE, a)


# ---------------------------------------------------------------- windows, also of later families


def windowed(plain: Architecture, config: Mapping[str, Any]) -> Architecture:
    """The architecture with the windows of a config that has `use_sliding_window`: from layer `max_window_layers` on,
    or where `layer_types` says so."""
    window = llama.window(config) if config["use_sliding_window"] else None
    first = config["max_window_layers"]
    types = config.get("layer_types") or [
        LOCAL if window is not None and layer >= first else GLOBAL for layer in range(plain.layers)
    ]
    local = local_layers(types, plain.layers, window)
    if len(local) == plain.layers:
        return changed(plain, attention=changed(plain.keyed, window=window))
    return changed(plain, local=Local(layers=local, window=window)) if local and window else plain


def local_layers(types: Sequence[str], layers: int, window: int | None) -> tuple[int, ...]:
    """Which layers see a window, by the config's `layer_types`; none may where there is none."""
    for kind in types:
        if kind not in (GLOBAL, LOCAL):
            raise unknown("config.json: layer_types", kind, (GLOBAL, LOCAL))
        if kind == LOCAL and window is None:
            raise InputError("config.json: layer_types", f"has {LOCAL}, but there is no window", "set sliding_window")
    if len(types) != layers:
        raise InputError("config.json: layer_types", f"names {len(types)} layers", f"there are {layers}")
    return tuple(layer for layer, kind in enumerate(types) if kind == LOCAL)


def layer_types(a: Architecture) -> tuple[list[str], int | None]:
    """The config's `layer_types` and the window of the local ones; None where all see everything."""
    if a.local is None:
        return [LOCAL if a.keyed.window else GLOBAL] * a.layers, a.keyed.window
    return [LOCAL if layer in a.local.layers else GLOBAL for layer in range(a.layers)], a.local.window


def windows(family: str, a: Architecture) -> dict[str, Any]:
    """The fields that `windowed` reads."""
    if a.local is not None and a.local.position not in (None, a.position):
        raise InputError("model.local.position", f"not a part of {family}", "all its layers share one encoding")
    types, window = layer_types(a)
    used = LOCAL in types
    return {
        "use_sliding_window": used,
        "sliding_window": window if used else None,
        "max_window_layers": types.index(LOCAL) if used else a.layers,
        "layer_types": types,
    }
