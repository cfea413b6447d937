"""LLaMA: pre-RMSNorm, rotary positions, SwiGLU, grouped-query attention (Touvron et al. 2023, arXiv 2302.13971 and
2307.09288). Its layout also carries SmolLM2, TinyLlama and most small models of the hub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmlab.errors import InputError
from llmlab.families.mapping import Entry, expect
from llmlab.model.attention import GroupedQuery, MultiHead
from llmlab.model.feedforward import SwiGLU
from llmlab.model.norms import RMSNorm
from llmlab.model.rotary import Rope, RopeInterleaved
from llmlab.model.transformer import Architecture

MODEL_TYPE = "llama"
PREFIX = "model."  # what a folder saved without its language-model wrapper lacks
IGNORED = ("rotary_emb.inv_freq",)  # buffers that old folders hold


def read_config(config: Mapping[str, Any]) -> tuple[Architecture, int]:
    """A Hugging Face config.json as (architecture, vocab_size)."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind != "default":
        raise InputError(
            "config.json: rope_scaling", f"{kind!r} is not built yet", "only the default rotary positions are"
        )
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        raise InputError("config.json: hidden_act", f"{config['hidden_act']!r}", "llama has silu")
    heads = config["num_attention_heads"]
    shared: dict[str, Any] = {
        "heads": heads,
        "head_dim": config.get("head_dim"),
        "bias": config.get("attention_bias", False),
    }
    kv_heads = config.get("num_key_value_heads") or heads
    return Architecture(
        layers=config["num_hidden_layers"],
        dim=config["hidden_size"],
        context=config.get("max_position_embeddings", 2048),
        position=Rope(base=scaling.get("rope_theta") or config.get("rope_theta") or 10_000.0),
        norm=RMSNorm(eps=config.get("rms_norm_eps", 1e-6)),
        attention=MultiHead(**shared) if kv_heads == heads else GroupedQuery(kv_heads=kv_heads, **shared),
        feedforward=SwiGLU(width=config["intermediate_size"], bias=config.get("mlp_bias", False)),
        tied=config.get("tie_word_embeddings", False),
        initial_std=config.get("initializer_range", 0.02),
    ), config["vocab_size"]


def write_config(architecture: Architecture, vocab_size: int) -> dict[str, Any]:
    """The config.json of this architecture, or an error naming the part that llama does not have."""
    a, attention = architecture, architecture.keyed
    position = expect("llama", "position", a.position, Rope, RopeInterleaved)
    norm = expect("llama", "norm", a.norm, RMSNorm)
    feedforward = expect("llama", "feedforward", a.feedforward, SwiGLU)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": MODEL_TYPE,
        "hidden_size": a.dim,
        "intermediate_size": feedforward.hidden_width(a.dim),
        "num_hidden_layers": a.layers,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.key_heads,
        "head_dim": attention.width(a.dim),
        "max_position_embeddings": a.context,
        "rms_norm_eps": norm.eps,
        "rope_theta": position.base,
        "rope_parameters": {"rope_type": "default", "rope_theta": position.base},
        "hidden_act": "silu",
        "attention_bias": attention.bias,
        "mlp_bias": feedforward.bias,
        "tie_word_embeddings": a.tied,
        "initializer_range": a.initial_std,
        "vocab_size": vocab_size,
        "torch_dtype": "float32",
    }


def names(architecture: Architecture) -> list[Entry]:
    """One entry a tensor of `LlamaForCausalLM`."""
    a, attention = architecture, architecture.keyed
    pairs = isinstance(a.position, RopeInterleaved)
    entries = [
        Entry("model.embed_tokens.weight", ("embedding.weight",)),
        Entry("model.norm.weight", ("final_norm.weight",)),
    ]
    linears = {
        "self_attn.q_proj": ("attention.query", attention.bias, attention.heads if pairs else 0),
        "self_attn.k_proj": ("attention.key", attention.bias, attention.key_heads if pairs else 0),
        "self_attn.v_proj": ("attention.value", attention.bias, 0),
        "self_attn.o_proj": ("attention.output", attention.bias, 0),
        "mlp.gate_proj": ("feedforward.gate", a.feedforward.bias, 0),
        "mlp.up_proj": ("feedforward.up", a.feedforward.bias, 0),
        "mlp.down_proj": ("feedforward.down", a.feedforward.bias, 0),
    }
    for i in range(a.layers):
        theirs, ours = f"model.layers.{i}", f"blocks.{i}"
        entries.append(Entry(f"{theirs}.input_layernorm.weight", (f"{ours}.attention_norm.weight",)))
        entries.append(Entry(f"{theirs}.post_attention_layernorm.weight", (f"{ours}.feedforward_norm.weight",)))
        for their, (our, bias, rotary) in linears.items():
            for part in ("weight", "bias") if bias else ("weight",):
                entries.append(Entry(f"{theirs}.{their}.{part}", (f"{ours}.{our}.{part}",), rotary=rotary))
    if not a.tied:
        entries.append(Entry("lm_head.weight", ("head.weight",)))
    return entries
