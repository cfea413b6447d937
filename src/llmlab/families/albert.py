"""ALBERT: BERT with one block used again and again, a narrow embedding that is projected, and pairs told apart by their
order (Lan et al. 2019, arXiv 1909.11942)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from llmlab.families.bert import (
    both,
    embedding_names,
    heads_there,
    read_heads,
    read_trunk,
    write_heads,
    write_trunk,
)
from llmlab.families.mapping import Entry, only
from llmlab.model.heads import TransformedHead
from llmlab.model.positions import Learned
from llmlab.model.transformer import Architecture

MODEL_TYPE = "albert"
PUBLISHED = "2019-09"
PREFIX = "albert."
IGNORED = ("position_ids", "token_type_ids")  # buffers that old folders hold
HEAD = "predictions.decoder.weight"
TIED = ("predictions.decoder.bias",)
CLASSES = {"AlbertForPreTraining": (True, True), "AlbertForMaskedLM": (True, False), "AlbertModel": (False, False)}


def settle(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The class by the heads that are there."""
    return heads_there(config, tensors, CLASSES, "predictions.bias", "sop_classifier.", "pooler.weight")


def read_config(config: Mapping[str, Any]) -> tuple[Architecture, int]:
    """A Hugging Face config.json as (architecture, vocab_size)."""
    only(config, num_hidden_groups=1, inner_group_num=1)
    trunk = read_trunk({"hidden_act": "gelu_new", "hidden_dropout_prob": 0.0, **config})
    head, pooled = read_heads(config, CLASSES, trunk["feedforward"])
    trunk["embedding"] = trunk["embedding"].model_copy(update={"dim": config.get("embedding_size", 128)})
    return Architecture(
        **trunk,
        shared=True,
        position=Learned(),
        context=config.get("max_position_embeddings", 512),
        head=head,
        pooled=pooled,
    ), config["vocab_size"]


def write_config(architecture: Architecture, vocab_size: int) -> dict[str, Any]:
    """The config.json of this architecture, or an error naming the part that ALBERT does not have."""
    return {
        **write_trunk(architecture, MODEL_TYPE),
        **write_heads(architecture, CLASSES),
        "embedding_size": architecture.embedding.dim or architecture.dim,
        "num_hidden_groups": 1,
        "inner_group_num": 1,
        "max_position_embeddings": architecture.context,
        "vocab_size": vocab_size,
    }


def names(architecture: Architecture) -> list[Entry]:
    """One entry a tensor of the class that has these heads."""
    theirs, ours = "albert.encoder.albert_layer_groups.0.albert_layers.0", "blocks.0"
    entries = [
        *embedding_names(MODEL_TYPE),
        *both("albert.encoder.embedding_hidden_mapping_in", "project"),
        *(entry for part in ("query", "key", "value") for entry in _attention(theirs, part, part)),
        *_attention(theirs, "dense", "output"),
        *both(f"{theirs}.attention.LayerNorm", f"{ours}.attention_norm"),
        *both(f"{theirs}.ffn", f"{ours}.feedforward.up"),
        *both(f"{theirs}.ffn_output", f"{ours}.feedforward.down"),
        *both(f"{theirs}.full_layer_layer_norm", f"{ours}.feedforward_norm"),
    ]
    if isinstance(architecture.head, TransformedHead):
        entries.append(Entry("predictions.bias", ("head_bias",)))
        entries += both("predictions.dense", "transform.linear") + both("predictions.LayerNorm", "transform.norm")
    if architecture.pooled is not None:
        entries += both("albert.pooler", "pooler.pool")
    if architecture.pooled:
        entries += both("sop_classifier.classifier", "pooler.classify")
    return entries


def _attention(layer: str, theirs: str, ours: str) -> list[Entry]:
    return both(f"{layer}.attention.{theirs}", f"blocks.0.attention.{ours}")
