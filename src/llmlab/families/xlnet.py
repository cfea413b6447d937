"""XLNet: positions as distances inside attention, learnt scores for two tokens of one text, a content and a query
stream (Yang et al. 2019, arXiv 1906.08237; positions from Transformer-XL, arXiv 1901.02860). Its linears of attention
are stored [dim, heads, width].

Its memory of the segment before is our cache: both hold what that segment's tokens were, whoever computes the keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from llmlab.errors import InputError, unknown
from llmlab.families.bert import both
from llmlab.families.gpt2 import ACTIVATIONS
from llmlab.families.mapping import Entry, chosen, expect, only
from llmlab.model.attention import MultiHead
from llmlab.model.block import Post
from llmlab.model.heads import NoHead, PlainHead
from llmlab.model.masks import Bidirectional, Causal
from llmlab.model.norms import LayerNorm
from llmlab.model.relative import XL
from llmlab.model.transformer import Architecture

MODEL_TYPE = "xlnet"
PUBLISHED = "2019-06"
PREFIX = "transformer."
IGNORED = ()
HEAD = "lm_loss.weight"
FREE = ("context",)  # it has no longest text
CLASSES = {"XLNetLMHeadModel": True, "XLNetModel": False}
MASKS: dict[str, Bidirectional | Causal] = {"bi": Bidirectional(), "uni": Causal()}


def settle(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The class by the head that is there or not; one that is not ours stays, to be refused by its name."""
    if (config.get("architectures") or ["XLNetModel"])[0] not in CLASSES:
        return dict(config)
    head = any(name.endswith("lm_loss.bias") for name in tensors)
    return {**config, "architectures": ["XLNetLMHeadModel" if head else "XLNetModel"]}


def read_config(config: Mapping[str, Any]) -> tuple[Architecture, int]:
    """A Hugging Face config.json as (architecture, vocab_size)."""
    only(config, bi_data=False, same_length=False)
    name = (config.get("architectures") or ["XLNetLMHeadModel"])[0]
    if name not in CLASSES:
        raise unknown("config.json: architectures", str(name), CLASSES)
    clamp = config.get("clamp_len", -1)
    return Architecture(
        layers=config["n_layer"],
        dim=config["d_model"],
        context=512,
        mask=chosen(config, "attn_type", MASKS, "bi"),
        position=XL(segments=True, furthest=clamp if clamp > 0 else None),
        norm=LayerNorm(eps=config.get("layer_norm_eps", 1e-12)),
        attention=MultiHead(heads=config["n_head"], head_dim=config.get("d_head")),
        feedforward=chosen(config, "ff_activation", ACTIVATIONS, "gelu")(width=config["d_inner"], bias=True),
        wiring=Post(),
        streams=2,
        head=PlainHead(bias=True) if CLASSES[name] else NoHead(),
        tied=config.get("tie_word_embeddings", True),
        dropout=config.get("dropout", 0.1),
        initial_std=config.get("initializer_range", 0.02),
    ), config["vocab_size"]


def write_config(architecture: Architecture, vocab_size: int) -> dict[str, Any]:
    """The config.json of this architecture, or an error naming the part that XLNet does not have."""
    a, attention = architecture, architecture.keyed
    width = attention.width(a.dim)
    if width * attention.heads != a.dim:
        raise InputError("model.attention.head_dim", f"{width} is not dim / heads, which {MODEL_TYPE} has")
    feedforward = expect(MODEL_TYPE, "feedforward", a.feedforward, *ACTIVATIONS.values())
    headless = isinstance(expect(MODEL_TYPE, "head", a.head, PlainHead, NoHead), NoHead)
    return {
        "architectures": ["XLNetModel" if headless else "XLNetLMHeadModel"],
        "model_type": MODEL_TYPE,
        "d_model": a.dim,
        "n_layer": a.layers,
        "n_head": attention.heads,
        "d_head": width,
        "d_inner": feedforward.hidden_width(a.dim),
        "ff_activation": next(name for name, member in ACTIVATIONS.items() if member is type(feedforward)),
        "attn_type": "uni" if isinstance(a.mask, Causal) else "bi",
        "clamp_len": expect(MODEL_TYPE, "position", a.position, XL).furthest or -1,
        "layer_norm_eps": expect(MODEL_TYPE, "norm", a.norm, LayerNorm).eps,
        "tie_word_embeddings": a.tied,
        "dropout": a.dropout,
        "initializer_range": a.initial_std or 0.02,
        "vocab_size": vocab_size,
        "torch_dtype": "float32",
    }


def names(architecture: Architecture) -> list[Entry]:
    """One entry a tensor of `XLNetLMHeadModel`."""
    a, attention = architecture, architecture.keyed
    heads, width = attention.heads, attention.width(a.dim)
    cube = (a.dim, heads, width)
    entries = [
        Entry("transformer.word_embedding.weight", ("embedding.weight",)),
        Entry("transformer.mask_emb", ("query_start",), shape=(1, 1, a.dim)),
    ]
    for i in range(a.layers):
        theirs, ours, table = f"transformer.layer.{i}", f"blocks.{i}", f"position.tables.{i}"
        for letter, name in (
            ("q", f"{ours}.attention.query.weight"),
            ("k", f"{ours}.attention.key.weight"),
            ("v", f"{ours}.attention.value.weight"),
            ("r", f"{table}.distance.weight"),
        ):
            entries.append(Entry(f"{theirs}.rel_attn.{letter}", (name,), transposed=True, shape=cube))
        entries += [
            Entry(f"{theirs}.rel_attn.o", (f"{ours}.attention.output.weight",), shape=cube),
            Entry(f"{theirs}.rel_attn.r_w_bias", (f"{table}.content_bias",)),
            Entry(f"{theirs}.rel_attn.r_r_bias", (f"{table}.distance_bias",)),
            Entry(f"{theirs}.rel_attn.r_s_bias", (f"{table}.segment_bias",)),
            Entry(f"{theirs}.rel_attn.seg_embed", (f"{table}.segment",)),
            *both(f"{theirs}.rel_attn.layer_norm", f"{ours}.attention_norm"),
            *both(f"{theirs}.ff.layer_norm", f"{ours}.feedforward_norm"),
            *both(f"{theirs}.ff.layer_1", f"{ours}.feedforward.up"),
            *both(f"{theirs}.ff.layer_2", f"{ours}.feedforward.down"),
        ]
    if not isinstance(a.head, NoHead):
        entries.append(Entry("lm_loss.bias", ("head_bias",)))
    if not a.tied:
        entries.append(Entry("lm_loss.weight", ("head.weight",)))
    return entries
