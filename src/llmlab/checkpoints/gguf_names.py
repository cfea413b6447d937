"""What the architectures of GGUF call a model's settings and tensors, beside Hugging Face's names of the same.

One `Dialect` an architecture, a table that reader and writer both go by, so that they cannot disagree. A GGUF says
what a Hugging Face config says under other keys; the rest is `families`' own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

from llmlab.errors import InputError
from llmlab.families import gpt2, llama, qwen2
from llmlab.families.mapping import Entry, written
from llmlab.model.transformer import Architecture

OUTPUT = "output.weight"  # missing where the head is the embedding
EMBEDDING = "token_embd.weight"


@dataclass(frozen=True)
class Key:
    """A setting: its key in GGUF (behind `<architecture>.`), its key in a Hugging Face config, its kind. Of an
    `optional` one the family knows the value where the file says nothing."""

    theirs: str
    config: str
    kind: type = int
    optional: bool = False


@dataclass(frozen=True)
class Dialect:
    """`keys` go both ways. `copies` are further keys with the value of another one, `plain` keys that may be there
    with this one value, `harmless` keys that touch no arithmetic. `flags` are config keys told by whether a tensor is
    there. llama.cpp computes `fixed` (config keys and values) whatever the file says, so nothing else is written.
    `unsaid` are config keys that no file holds. The blocks of `tensors` (Hugging Face's stem -> GGUF's) lie below
    `layers`. `neighbours`: stems whose rows are turned in neighbouring pairs, with the key of how many heads they are.
    """

    family: ModuleType
    layers: str
    tensors: Mapping[str, str]
    keys: tuple[Key, ...]
    fixed: Mapping[str, Any]
    copies: Mapping[str, str] = field(default_factory=dict)
    plain: Mapping[str, Any] = field(default_factory=dict)
    harmless: frozenset[str] = frozenset({"vocab_size", "tensor_data_layout"})
    flags: Mapping[str, str] = field(default_factory=dict)
    unsaid: Mapping[str, Any] = field(default_factory=dict)
    neighbours: Mapping[str, str] = field(default_factory=dict)

    def understood(self) -> set[str]:
        """Every key that is obeyed or that changes no arithmetic. Any other might."""
        return {key.theirs for key in self.keys} | {*self.copies, *self.plain, *self.harmless}

    def settings(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """What a file says of a model, by GGUF's keys."""
        said = {key.theirs: key.kind(config[key.config]) for key in self.keys if key.config in config}
        return said | {key: said[source] for key, source in self.copies.items() if source in said}

    def entries(self, architecture: Architecture) -> list[Entry]:
        """The tensors of a file; its linears are all stored [out, in]."""
        return [
            replace(entry, theirs=self._tensor(entry.theirs), transposed=False)
            for entry in self.family.names(architecture)
        ]

    def turned(self, entries: list[Entry], settings: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
        """GGUF's name -> (ours, heads) of the tensors whose rows are turned in neighbouring pairs."""
        return {
            entry.theirs: (entry.ours[0], settings[self.neighbours[stem]])
            for entry in entries
            if (stem := entry.theirs.split(".")[-2]) in self.neighbours
        }

    def _tensor(self, theirs: str) -> str:
        """`model.layers.3.self_attn.q_proj.weight` is `blk.3.attn_q.weight`."""
        stem, _, part = theirs.rpartition(".")
        if not stem.startswith(self.layers):
            return f"{self.tensors[stem]}.{part}"
        layer, _, stem = stem.removeprefix(self.layers).partition(".")
        return f"blk.{layer}.{self.tensors[stem]}.{part}"


# What llama.cpp's YaRN is, whatever a file says: its ramp, and its temperature.
YARN = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True, "attention_factor": None}
ROPE_TYPES = ("none", "linear", "yarn")  # of `rope.scaling.type`, those that are read and written

LLAMA = Dialect(
    family=llama,
    layers="model.layers.",
    tensors={
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    },
    keys=(
        Key("block_count", "num_hidden_layers"),
        Key("context_length", "max_position_embeddings"),
        Key("embedding_length", "hidden_size"),
        Key("feed_forward_length", "intermediate_size"),
        Key("attention.head_count", "num_attention_heads"),
        Key("attention.head_count_kv", "num_key_value_heads", optional=True),
        Key("attention.key_length", "head_dim", optional=True),
        Key("attention.layer_norm_rms_epsilon", "rms_norm_eps", float),
        Key("rope.freq_base", "rope_theta", float, optional=True),
        Key("rope.scaling.type", "rope_type", str, optional=True),
        Key("rope.scaling.factor", "factor", float, optional=True),
        Key("rope.scaling.original_context_length", "original_max_position_embeddings", optional=True),
    ),
    fixed={"hidden_act": "silu", **YARN},
    copies={"attention.value_length": "attention.key_length", "rope.dimension_count": "attention.key_length"},
    plain={"expert_count": 0, "rope.scale_linear": 1.0},
    harmless=frozenset({"vocab_size", "tensor_data_layout", "expert_used_count"}),
    flags={"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_gate.bias"},
    neighbours={"attn_q": "attention.head_count", "attn_k": "attention.head_count_kv"},
)

# LLaMA's names; its own biases, rows turned as in Hugging Face's files, and heads that divide the width.
QWEN2 = replace(
    LLAMA,
    family=qwen2,
    keys=tuple(key for key in LLAMA.keys if key.config != "head_dim"),
    fixed={**LLAMA.fixed, "use_sliding_window": False, "head_dim": None},
    copies=dict.fromkeys(("attention.key_length", *LLAMA.copies), "attention.key_length"),
    flags={},
    neighbours={},
)

GPT2 = Dialect(
    family=gpt2,
    layers="transformer.h.",
    tensors={
        "transformer.wte": "token_embd",
        "transformer.wpe": "position_embd",
        "transformer.ln_f": "output_norm",
        "lm_head": "output",
        "ln_1": "attn_norm",
        "ln_2": "ffn_norm",
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "mlp.c_fc": "ffn_up",
        "mlp.c_proj": "ffn_down",
    },
    keys=(
        Key("block_count", "n_layer"),
        Key("context_length", "n_positions"),
        Key("embedding_length", "n_embd"),
        Key("feed_forward_length", "n_inner"),
        Key("attention.head_count", "n_head"),
        Key("attention.layer_norm_epsilon", "layer_norm_epsilon", float),
    ),
    fixed={"activation_function": "gelu_new"},
    copies={"attention.head_count_kv": "attention.head_count"},
    unsaid={"resid_pdrop": 0.0, "embd_pdrop": 0.0},
)

# By GGUF's name of the architecture; the first that can express a model writes it.
DIALECTS = {"llama": LLAMA, "qwen2": QWEN2, "gpt2": GPT2}


def dialect_of(architecture: Architecture) -> tuple[str, Dialect, dict[str, Any]]:
    """The name of the first architecture of GGUF that can express this one, its dialect, and the model's config.

    Errors: InputError saying what each of them lacks.
    """
    reasons = []
    for name, dialect in DIALECTS.items():
        try:
            config = flat(written(dialect.family, architecture, 1))
        except InputError as error:
            reasons.append(f"{name}: {error.place} {error.problem}")
            continue
        other = {key: config[key] for key, value in dialect.fixed.items() if config.get(key, value) != value}
        if (kind := config.get("rope_type", "none")) not in ROPE_TYPES:
            reasons.append(f"{name}: rope_type {kind}, where llama.cpp has {', '.join(ROPE_TYPES)}")
        elif not other:
            return name, dialect, config
        reasons += [f"{name}: {key} {value}, where llama.cpp has {dialect.fixed[key]}" for key, value in other.items()]
    raise InputError("model", "no architecture of GGUF has this combination of parts", "; ".join(reasons))


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with the settings of its rotary positions beside the others; what says that nothing is scaled is left
    out."""
    told = {**config, **(config.get("rope_parameters") or {})}
    return {key: value for key, value in told.items() if (key, value) != ("rope_type", "default")}


def scaled(config: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The inverse for scaled rotary positions. Errors: InputError for a scaling that is not built."""
    kind = config.get("rope_type", "none")
    if kind not in ROPE_TYPES:
        raise InputError(place, f"rope.scaling.type is {str(kind)[:80]!r}, which is not built", ", ".join(ROPE_TYPES))
    if kind == "none" or config.get("factor") == 1:
        return {key: value for key, value in config.items() if key not in ("rope_type", "factor")}
    if "factor" not in config:
        raise InputError(place, f"rope.scaling.factor is missing, which {kind} needs")
    names = ("rope_type", "factor", "original_max_position_embeddings", *(YARN if kind == "yarn" else ()))
    return {**config, "rope_scaling": {name: config[name] for name in names if name in config}}
