"""Gemma 3: sandwich RMSNorm with gains around 1, QK-norm, GEGLU, embeddings times sqrt(dim), and local layers with a
window and a rotary base of their own between global ones (Gemma Team 2025, arXiv 2503.19786)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from llmlab.errors import InputError
from llmlab.families import llama
from llmlab.families.mapping import changed, chosen, expect, only
from llmlab.families.qwen2 import LOCAL, layer_types, local_layers
from llmlab.families.rope import named, read_rope, write_rope
from llmlab.model.block import Sandwich
from llmlab.model.embedding import Embedding
from llmlab.model.norms import RMSNorm
from llmlab.model.rotary import Rope
from llmlab.model.transformer import Architecture, Local

MODEL_TYPE = "gemma3_text"
PUBLISHED = "2025-03"
PREFIX, IGNORED = llama.PREFIX, llama.IGNORED
DEFAULTS = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
    "tie_word_embeddings": True,
}
NORMS = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "attention_after",
    "pre_feedforward_layernorm": "feedforward_norm",
    "post_feedforward_layernorm": "feedforward_after",
}
names = partial(llama.names, norms=NORMS)


def read_config(config: Mapping[str, Any]) -> tuple[Architecture, int]:
    """A Hugging Face config.json as (architecture, vocab_size)."""
    only(config, attn_logit_softcapping=None, final_logit_softcapping=None, use_bidirectional_attention=False)
    gate = config.get("hidden_activation", "gelu_pytorch_tanh")
    chosen(config, "hidden_activation", llama.GATES, gate)
    whole = {**DEFAULTS, **config, "hidden_act": gate, "mlp_bias": False}
    nested = config.get("rope_parameters") or {}
    wide = (nested.get("full_attention") or {}) | (config.get("rope_scaling") or {})
    near = nested.get("sliding_attention") or {}
    plain = llama.read(whole, read_rope(wide, whole, config.get("rope_theta") or 1e6, Rope))
    pattern = whole["sliding_window_pattern"]
    default = [LOCAL if (layer + 1) % pattern else "full_attention" for layer in range(plain.layers)]
    window = llama.window(whole)
    layers = local_layers(config.get("layer_types") or default, plain.layers, window)
    own = read_rope(near, whole, config.get("rope_local_base_freq") or 1e4, Rope)
    if not (scalar := whole["query_pre_attn_scalar"]) > 0:
        raise InputError("config.json: query_pre_attn_scalar", f"{scalar} has no inverse root", "head_dim is common")
    attention = changed(plain.keyed, norm=True, scale=scalar**-0.5)
    if len(layers) == plain.layers:  # the global encoding has no use
        plain, attention = changed(plain, position=own), changed(attention, window=window)
        layers = ()
    return changed(
        plain,
        embedding=Embedding(scale=plain.dim**0.5),
        norm=RMSNorm(eps=whole.get("rms_norm_eps", 1e-6), offset=1.0),
        attention=attention,
        wiring=Sandwich(),
        local=Local(layers=layers, window=window, position=own) if layers and window else None,
    ), config["vocab_size"]


def write_config(architecture: Architecture, vocab_size: int) -> dict[str, Any]:
    """The config.json of this architecture, or an error naming the part that Gemma 3 does not have."""
    a, head_dim = architecture, architecture.keyed.width(architecture.dim)
    llama.divides(MODEL_TYPE, a)
    config = llama.write(MODEL_TYPE, "Gemma3ForCausalLM", a, vocab_size)
    wide = expect(MODEL_TYPE, "position", a.position, Rope)
    near = wide
    if a.local is not None and a.local.position is not None:
        near = expect(MODEL_TYPE, "local.position", a.local.position, Rope)
    types, window = layer_types(a)
    parameters = {"full_attention": write_rope(wide, head_dim), LOCAL: write_rope(near, head_dim)}
    return (
        config
        | {
            "hidden_activation": config.pop("hidden_act"),
            "attention_bias": a.keyed.bias,
            "query_pre_attn_scalar": _scalar(a.keyed.scale, head_dim),
            "sliding_window": window or DEFAULTS["sliding_window"],
            "layer_types": types,
            "rope_parameters": parameters,
            "rope_theta": parameters["full_attention"]["rope_theta"],
            "rope_local_base_freq": parameters[LOCAL]["rope_theta"],
        }
        | _pattern(types)
        | named(parameters["full_attention"])
    )


def _scalar(scale: float | None, head_dim: int) -> int:
    """The whole number whose inverse root the scale is."""
    scalar = head_dim if scale is None else round(scale**-2)
    if scale is not None and scalar**-0.5 != scale:
        raise InputError("model.attention.scale", f"{scale} is no 1 / sqrt(n)", f"{MODEL_TYPE} has the n in its config")
    return scalar


def _pattern(types: list[str]) -> dict[str, int]:
    """Where every n-th layer is global: n, from which versions without `layer_types` know it."""
    for n in range(1, len(types) + 2):
        if all((kind == LOCAL) == bool((layer + 1) % n) for layer, kind in enumerate(types)):
            return {"sliding_window_pattern": n}
    return {}
