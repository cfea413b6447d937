"""mT5: T5 version 1.1 trained on 101 languages, its head never scaled (Xue et al. 2020, arXiv 2010.11934)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from llmlab.families import t5
from llmlab.families.t5 import IGNORED, PREFIX, names
from llmlab.model.transformer import Architecture

__all__ = ["IGNORED", "MODEL_TYPE", "PREFIX", "PUBLISHED", "names", "read_config", "settle", "write_config"]

MODEL_TYPE = "mt5"
PUBLISHED = "2020-10"


def settle(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Whether the head is the table."""
    return t5.settle(config, tensors)


def read_config(config: Mapping[str, Any]) -> tuple[Architecture, int]:
    """A Hugging Face config.json as (architecture, vocab_size)."""
    return t5.read_config({"feed_forward_proj": "gated-gelu", **config, "scale_decoder_outputs": False})


def write_config(architecture: Architecture, vocab_size: int) -> dict[str, Any]:
    """The config.json of this architecture, or an error naming the part that mT5 does not have."""
    config = t5.write_config(architecture, vocab_size)
    return config | {"architectures": ["MT5ForConditionalGeneration"], "model_type": MODEL_TYPE}
