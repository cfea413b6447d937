"""Mistral: LLaMA's layout without biases, each layer with a sliding window (Jiang et al. 2023, arXiv 2310.06825)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmlab.families import llama
from llmlab.families.mapping import changed
from llmlab.model.transformer import Architecture

MODEL_TYPE = "mistral"
PUBLISHED = "2023-09"
PREFIX, IGNORED, names = llama.PREFIX, llama.IGNORED, llama.names
DEFAULTS = {"max_position_embeddings": 131_072, "num_key_value_heads": 8, "sliding_window": 4096}
FIXED = {"attention_bias": False, "mlp_bias": False}


def read_config(config: Mapping[str, Any]) -> tuple[Architecture, int]:
    """A Hugging Face config.json as (architecture, vocab_size)."""
    whole = {**DEFAULTS, **config, **FIXED}
    plain = llama.read(whole)
    return changed(plain, attention=changed(plain.keyed, window=llama.window(whole))), config["vocab_size"]


def write_config(architecture: Architecture, vocab_size: int) -> dict[str, Any]:
    """The config.json of this architecture, or an error naming the part that Mistral does not have."""
    return (
        llama.write(MODEL_TYPE, "MistralForCausalLM", architecture, vocab_size)
        | llama.rotary(MODEL_TYPE, architecture)
        | {"sliding_window": architecture.keyed.window}
    )
