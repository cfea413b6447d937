"""GLM-4-0414: GLM-4 with a norm behind each part as well as before it (Z.ai 2025, the weights of GLM-4-9B-0414)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from llmlab.families import glm
from llmlab.families.mapping import changed
from llmlab.model.block import Sandwich
from llmlab.model.transformer import Architecture

MODEL_TYPE = "glm4"
PUBLISHED = "2025-04"
PREFIX, IGNORED = glm.PREFIX, glm.IGNORED
NORMS = {
    "input_layernorm": "attention_norm",
    "post_self_attn_layernorm": "attention_after",
    "post_attention_layernorm": "feedforward_norm",
    "post_mlp_layernorm": "feedforward_after",
}
names = partial(glm.names, norms=NORMS)


def read_config(config: Mapping[str, Any]) -> tuple[Architecture, int]:
    """A Hugging Face config.json as (architecture, vocab_size)."""
    plain, vocab_size = glm.read_config(config)
    return changed(plain, wiring=Sandwich()), vocab_size


def write_config(architecture: Architecture, vocab_size: int) -> dict[str, Any]:
    """The config.json of this architecture, or an error naming the part that GLM-4-0414 does not have."""
    return glm.write(MODEL_TYPE, "Glm4ForCausalLM", architecture, vocab_size)
