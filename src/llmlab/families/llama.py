"""LLaMA: pre-RMSNorm, rotary positions, SwiGLU, grouped-query attention (Touvron et al. 2023, arXiv 2302.13971 and
2307.09288). Its layout also carries SmolLM2, TinyLlama and most small models of the hub.

`read`, `write` and `names` serve the families that changed a part and kept the layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmlab.errors import InputError
from llmlab.families.mapping import Entry, changed, chosen, expect
from llmlab.families.rope import both, read_rope, stated
from llmlab.model.attention import GroupedQuery, MultiHead
from llmlab.model.encoding import PositionPart
from llmlab.model.feedforward import GEGLU, GLU, Bilinear, ReGLU, SwiGLU
from llmlab.model.norms import RMSNorm
from llmlab.model.rotary import Rope, RopeInterleaved
from llmlab.model.transformer import Architecture

MODEL_TYPE = "llama"
PUBLISHED = "2023-02"
PREFIX = "model."  # what a folder saved without its language-model wrapper lacks
IGNORED = ("rotary_emb.inv_freq",)  # buffers that old folders hold
DEFAULTS = {"max_position_embeddings": 2048}  # what transformers takes for a field that is left out

Gated = SwiGLU | GEGLU | ReGLU | GLU | Bilinear
GATED: tuple[type[Gated], ...] = (SwiGLU, GEGLU, ReGLU, GLU, Bilinear)
ROTARY: tuple[type[Rope | RopeInterleaved], ...] = (Rope, RopeInterleaved)
GATES: dict[str, Gated] = {  # of several names for one gate, the first is written
    "silu": SwiGLU(),
    "swish": SwiGLU(),
    "gelu": GEGLU(),
    "gelu_pytorch_tanh": GEGLU(tanh=True),
    "gelu_new": GEGLU(tanh=True),
    "relu": ReGLU(),
    "sigmoid": GLU(),
    "linear": Bilinear(),
}
NORMS = {"input_layernorm": "attention_norm", "post_attention_layernorm": "feedforward_norm"}


def read_config(config: Mapping[str, Any]) -> tuple[Architecture, int]:
    """A Hugging Face config.json as (architecture, vocab_size)."""
    return read({**DEFAULTS, **config}), config["vocab_size"]


def write_config(architecture: Architecture, vocab_size: int) -> dict[str, Any]:
    """The config.json of this architecture, or an error naming the part that llama does not have."""
    divides(MODEL_TYPE, architecture)
    return (
        write(MODEL_TYPE, "LlamaForCausalLM", architecture, vocab_size)
        | rotary(MODEL_TYPE, architecture)
        | {"attention_bias": architecture.keyed.bias, "mlp_bias": architecture.feedforward.bias}
    )


# ---------------------------------------------------------------- for all that keep the layout


def read(config: Mapping[str, Any], position: PositionPart | None = None) -> Architecture:
    """The architecture of a config with llama's fields, those filled in that have a default of the family's own."""
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    shared: dict[str, Any] = {
        "heads": heads,
        "head_dim": config.get("head_dim"),
        "bias": config.get("attention_bias", False),
    }
    gate = chosen(config, "hidden_act", GATES, "silu")
    return Architecture(
        layers=config["num_hidden_layers"],
        dim=config["hidden_size"],
        context=config["max_position_embeddings"],
        position=position or read_rope(stated(config), config, config.get("rope_theta") or 10_000.0, Rope),
        norm=RMSNorm(eps=config.get("rms_norm_eps", 1e-6)),
        attention=MultiHead(**shared) if kv_heads == heads else GroupedQuery(kv_heads=kv_heads, **shared),
        feedforward=changed(gate, width=config["intermediate_size"], bias=config.get("mlp_bias", False)),
        tied=config.get("tie_word_embeddings", False),
        initial_std=config.get("initializer_range", 0.02),
    )


def window(config: Mapping[str, Any]) -> int | None:
    """The config's `sliding_window`, in tokens; None where it has none."""
    value = config["sliding_window"]
    if value is not None and (not isinstance(value, int) or value < 1):
        raise InputError("config.json: sliding_window", f"{value!r} is no number of tokens", "1 or more, or null")
    return value


def write(family: str, class_name: str, a: Architecture, vocab_size: int) -> dict[str, Any]:
    """The fields that all of them share; positions, biases and windows are for the family to add."""
    attention = a.keyed
    norm = expect(family, "norm", a.norm, RMSNorm)
    feedforward = expect(family, "feedforward", a.feedforward, *GATED)
    return {
        "architectures": [class_name],
        "model_type": family,
        "hidden_size": a.dim,
        "intermediate_size": feedforward.hidden_width(a.dim),
        "num_hidden_layers": a.layers,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.key_heads,
        "head_dim": attention.width(a.dim),
        "max_position_embeddings": a.context,
        "rms_norm_eps": norm.eps,
        "hidden_act": next(name for name, gate in GATES.items() if _same(gate, feedforward)),
        "tie_word_embeddings": a.tied,
        "initializer_range": a.initial_std or 0.02,
        "vocab_size": vocab_size,
        "torch_dtype": "float32",
    }


def divides(family: str, a: Architecture) -> None:
    """Some classes of transformers ask for it, even where the width of a head is given."""
    if a.dim % a.keyed.heads:
        raise InputError("model.attention.heads", f"{a.keyed.heads} do not divide dim {a.dim}, which {family} asks for")


def rotary(family: str, a: Architecture) -> dict[str, Any]:
    """The fields of positions that turn whole heads, the same ones in every layer."""
    return both(expect(family, "position", a.position, *ROTARY), a.keyed.width(a.dim))


def names(architecture: Architecture, norms: Mapping[str, str] = NORMS, neighbours: bool = False) -> list[Entry]:
    """One entry a tensor. `norms` are a layer's, theirs to ours; `neighbours` says that their rotary weights are paired
    as ours are."""
    a, attention = architecture, architecture.keyed
    pairs = isinstance(a.position, RopeInterleaved) and not neighbours
    entries = [
        Entry("model.embed_tokens.weight", ("embedding.weight",)),
        Entry("model.norm.weight", ("final_norm.weight",)),
    ]
    linears = {
        "self_attn.q_proj": ("attention.query", attention.bias, attention.heads if pairs else 0),
        "self_attn.k_proj": ("attention.key", attention.bias, attention.key_heads if pairs else 0),
        "self_attn.v_proj": ("attention.value", attention.bias, 0),
        "self_attn.o_proj": ("attention.output", attention.biased_output, 0),
        "mlp.gate_proj": ("feedforward.gate", a.feedforward.bias, 0),
        "mlp.up_proj": ("feedforward.up", a.feedforward.bias, 0),
        "mlp.down_proj": ("feedforward.down", a.feedforward.bias, 0),
    }
    heads = {"self_attn.q_norm": "attention.query_norm", "self_attn.k_norm": "attention.key_norm"}
    for i in range(a.layers):
        theirs, ours = f"model.layers.{i}", f"blocks.{i}"
        for their, our in norms.items():
            entries.append(Entry(f"{theirs}.{their}.weight", (f"{ours}.{our}.weight",)))
        for their, our in heads.items() if attention.norm else ():  # all heads share one, turned as one head is
            entries.append(Entry(f"{theirs}.{their}.weight", (f"{ours}.{our}.weight",), rotary=int(pairs)))
        for their, (our, bias, turned) in linears.items():
            for part in ("weight", "bias") if bias else ("weight",):
                entries.append(Entry(f"{theirs}.{their}.{part}", (f"{ours}.{our}.{part}",), rotary=turned))
    if not a.tied:
        entries.append(Entry("lm_head.weight", ("head.weight",)))
    return entries


def _same(gate: Gated, other: Gated) -> bool:
    """Whether they have one name in a config; what a name does not say is compared when the config is read again."""
    return type(gate) is type(other) and getattr(gate, "tanh", None) == getattr(other, "tanh", None)
