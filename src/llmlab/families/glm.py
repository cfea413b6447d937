"""GLM-4 (9B, 2024): LLaMA's layout with biases on queries, keys and values, a part of each head turned in neighbouring
pairs, gate and up fused (GLM Team 2024, arXiv 2406.12793)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmlab.families import llama
from llmlab.families.mapping import Entry, changed, expect
from llmlab.families.rope import older, read_rope, stated, write_rope
from llmlab.model.rotary import RopeInterleaved
from llmlab.model.transformer import Architecture

MODEL_TYPE = "glm"
PUBLISHED = "2024-06"
PREFIX, IGNORED = llama.PREFIX, llama.IGNORED
DEFAULTS = {
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1.5625e-07,
    "attention_bias": True,
}


def read_config(config: Mapping[str, Any]) -> tuple[Architecture, int]:
    """A Hugging Face config.json as (architecture, vocab_size)."""
    whole = {**DEFAULTS, **config, "mlp_bias": False}
    base, fraction = config.get("rope_theta") or 10_000.0, config.get("partial_rotary_factor", 0.5)
    plain = llama.read(whole, read_rope(stated(config), whole, base, RopeInterleaved, fraction))
    return changed(plain, attention=changed(plain.keyed, output_bias=False)), config["vocab_size"]


def write_config(architecture: Architecture, vocab_size: int) -> dict[str, Any]:
    """The config.json of this architecture, or an error naming the part that GLM-4 does not have."""
    return write(MODEL_TYPE, "GlmForCausalLM", architecture, vocab_size)


def write(family: str, class_name: str, a: Architecture, vocab_size: int) -> dict[str, Any]:
    """The same for families that read their config as this one does."""
    position = expect(family, "position", a.position, RopeInterleaved)
    partial = {"partial_rotary_factor": position.fraction}
    fields = write_rope(position, a.keyed.width(a.dim)) | partial
    return (
        llama.write(family, class_name, a, vocab_size)
        | {"rope_parameters": fields, "rope_theta": fields["rope_theta"], "attention_bias": a.keyed.bias}
        | partial
        | older(fields)
    )


def names(architecture: Architecture, norms: Mapping[str, str] = llama.NORMS) -> list[Entry]:
    """One entry a tensor of `GlmForCausalLM`; its gate lies before up in one matrix."""
    apart = (".mlp.gate_proj.weight", ".mlp.up_proj.weight")
    entries = [e for e in llama.names(architecture, norms, neighbours=True) if not e.theirs.endswith(apart)]
    for i in range(architecture.layers):
        both = tuple(f"blocks.{i}.feedforward.{part}.weight" for part in ("gate", "up"))
        entries.append(Entry(f"model.layers.{i}.mlp.gate_up_proj.weight", both))
    return entries
