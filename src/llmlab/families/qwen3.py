"""Qwen3: LLaMA's layout with each head's queries and keys normalised (Yang et al. 2025, arXiv 2505.09388)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmlab.families import llama, qwen2
from llmlab.families.mapping import changed
from llmlab.model.transformer import Architecture

MODEL_TYPE = "qwen3"
PUBLISHED = "2025-04"
PREFIX, IGNORED, names = llama.PREFIX, llama.IGNORED, llama.names
DEFAULTS = {**qwen2.DEFAULTS, "head_dim": 128}


def read_config(config: Mapping[str, Any]) -> tuple[Architecture, int]:
    """A Hugging Face config.json as (architecture, vocab_size)."""
    whole = {**DEFAULTS, **config, "mlp_bias": False}
    plain = llama.read(whole)
    return qwen2.windowed(changed(plain, attention=changed(plain.keyed, norm=True)), whole), config["vocab_size"]


def write_config(architecture: Architecture, vocab_size: int) -> dict[str, Any]:
    """The config.json of this architecture, or an error naming the part that Qwen3 does not have."""
    return (
        llama.write(MODEL_TYPE, "Qwen3ForCausalLM", architecture, vocab_size)
        | llama.rotary(MODEL_TYPE, architecture)
        | qwen2.windows(MODEL_TYPE, architecture)
        | {"attention_bias": architecture.keyed.bias}
    )
