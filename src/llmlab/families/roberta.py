"""RoBERTa: BERT without pairs, its positions counted from two, its head of masked tokens always GELU (Liu et al. 2019,
arXiv 1907.11692)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from llmlab.errors import InputError
from llmlab.families.bert import (
    both,
    heads_there,
    read_heads,
    read_trunk,
    trunk_names,
    write_heads,
    write_trunk,
)
from llmlab.families.mapping import Entry, expect
from llmlab.model.feedforward import GELU
from llmlab.model.heads import TransformedHead
from llmlab.model.positions import Learned
from llmlab.model.transformer import Architecture

MODEL_TYPE = "roberta"
PUBLISHED = "2019-07"
PREFIX = "roberta."
IGNORED = ("position_ids", "token_type_ids")  # buffers that old folders hold
HEAD = "lm_head.decoder.weight"
TIED = ("lm_head.decoder.bias",)
CLASSES = {"RobertaForMaskedLM": (True, False), "RobertaModel": (False, False)}


def settle(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The class by the heads that are there."""
    return heads_there(config, tensors, CLASSES, "lm_head.bias", "", "pooler.dense")


def read_config(config: Mapping[str, Any]) -> tuple[Architecture, int]:
    """A Hugging Face config.json as (architecture, vocab_size). Positions start after the padding token's id."""
    padding = config.get("pad_token_id", 1)
    if not isinstance(padding, int) or padding < 0:
        raise InputError("config.json: pad_token_id", f"is {padding}", "positions are counted from it; RoBERTa has 1")
    offset = padding + 1
    head, pooled = read_heads(config, CLASSES, GELU())
    return Architecture(
        **read_trunk(config),
        position=Learned(offset=offset),
        context=config.get("max_position_embeddings", 514) - offset,
        head=head,
        pooled=pooled,
    ), config["vocab_size"]


def write_config(architecture: Architecture, vocab_size: int) -> dict[str, Any]:
    """The config.json of this architecture, or an error naming the part that RoBERTa does not have."""
    offset = expect(MODEL_TYPE, "position", architecture.position, Learned).offset
    if not offset:
        raise InputError("model.position.offset", "0 is BERT's", f"{MODEL_TYPE} counts positions from its padding")
    return {
        **write_trunk(architecture, MODEL_TYPE),
        **write_heads(architecture, CLASSES),
        "max_position_embeddings": architecture.context + offset,
        "pad_token_id": offset - 1,
        "vocab_size": vocab_size,
    }


def names(architecture: Architecture) -> list[Entry]:
    """One entry a tensor of `RobertaForMaskedLM` or `RobertaModel`."""
    entries = trunk_names(architecture, MODEL_TYPE)
    if isinstance(architecture.head, TransformedHead):
        entries.append(Entry("lm_head.bias", ("head_bias",)))
        entries += both("lm_head.dense", "transform.linear") + both("lm_head.layer_norm", "transform.norm")
    return entries
