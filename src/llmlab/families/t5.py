"""T5: an encoder and a decoder with pre-RMSNorm, one table of distance biases a stack, scores without a scale and no
biases; ReLU and a tied head whose input is scaled (Raffel et al. 2020, arXiv 1910.10683), or in version 1.1 a gated
GELU and a head of its own (Shazeer 2020, arXiv 2002.05202)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from llmlab.errors import InputError
from llmlab.families.mapping import Entry, changed, chosen, expect, only
from llmlab.model.attention import MultiHead
from llmlab.model.feedforward import GEGLU, GELU, FeedForwardPart, GELUTanh, ReGLU, ReLU, SwiGLU, Swish
from llmlab.model.heads import PlainHead
from llmlab.model.norms import RMSNorm
from llmlab.model.relative import T5Bias
from llmlab.model.transformer import Architecture

MODEL_TYPE = "t5"
PUBLISHED = "2019-10"
PREFIX = ""
# The table once more, under the names of both stacks; and a bias that the first release stored and never used.
IGNORED = (
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
    "EncDecAttention.relative_attention_bias.weight",
)
GATED = (GEGLU, ReGLU, SwiGLU)
FEEDFORWARDS: dict[str, FeedForwardPart] = {
    "relu": ReLU(),
    "gated-gelu": GEGLU(tanh=True),
    "gelu_new": GELUTanh(),
    "gelu": GELU(),
    "silu": Swish(),
    "gated-gelu_new": GEGLU(tanh=True),
    "gated-relu": ReGLU(),
    "gated-silu": SwiGLU(),
}


def settle(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Whether the head is the table: newer configs say so of every T5, whatever their weights are."""
    head, table = tensors.get("lm_head.weight"), tensors.get("shared.weight")
    own = head is not None and table is not None and not torch.equal(head, table)
    return {**config, "scale_decoder_outputs": _scaled(config), "tie_word_embeddings": not own}


def _scaled(config: Mapping[str, Any]) -> bool:
    """Older configs of version 1.1 say it by `tie_word_embeddings` alone."""
    return bool(config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True)))


def read_config(config: Mapping[str, Any]) -> tuple[Architecture, int]:
    """A Hugging Face config.json as (architecture, vocab_size)."""
    only(config, is_encoder_decoder=True)
    feedforward = chosen(config, "feed_forward_proj", FEEDFORWARDS, "relu")
    dim, layers = config["d_model"], config["num_layers"]
    return Architecture(
        encoder_layers=layers,
        layers=config.get("num_decoder_layers") or layers,
        dim=dim,
        context=config.get("n_positions", 512),
        position=T5Bias(
            buckets=config.get("relative_attention_num_buckets", 32),
            furthest=config.get("relative_attention_max_distance", 128),
        ),
        norm=RMSNorm(eps=config.get("layer_norm_epsilon", 1e-6)),
        attention=MultiHead(heads=config["num_heads"], head_dim=config["d_kv"], scale=1.0),
        feedforward=changed(feedforward, width=config["d_ff"]),
        start_id=config.get("decoder_start_token_id", config.get("pad_token_id", 0)),
        head=PlainHead(scale=dim**-0.5 if _scaled(config) else 1.0),
        tied=config.get("tie_word_embeddings", True),
        dropout=config.get("dropout_rate", 0.1),
        initial_std=None,
    ), config["vocab_size"]


def write_config(architecture: Architecture, vocab_size: int) -> dict[str, Any]:
    """The config.json of this architecture, or an error naming the part that T5 does not have."""
    a, attention = architecture, architecture.keyed
    if not a.encoder_layers:
        raise InputError("model.encoder_layers", f"0 is not a part of {MODEL_TYPE}", "it has an encoder")
    position = expect(MODEL_TYPE, "position", a.position, T5Bias)
    norm = expect(MODEL_TYPE, "norm", a.norm, RMSNorm)
    expect(MODEL_TYPE, "feedforward", a.feedforward, *{type(part) for part in FEEDFORWARDS.values()})
    plain = a.feedforward.model_copy(update={"width": None})
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": MODEL_TYPE,
        "is_encoder_decoder": True,
        "d_model": a.dim,
        "d_kv": attention.width(a.dim),
        "d_ff": a.feedforward.hidden_width(a.dim),
        "num_layers": a.encoder_layers,
        "num_decoder_layers": a.layers,
        "num_heads": attention.heads,
        "n_positions": a.context,
        "relative_attention_num_buckets": position.buckets,
        "relative_attention_max_distance": position.furthest,
        "feed_forward_proj": next((name for name, part in FEEDFORWARDS.items() if part == plain), "relu"),
        "layer_norm_epsilon": norm.eps,
        "decoder_start_token_id": a.start_id,
        "scale_decoder_outputs": expect(MODEL_TYPE, "head", a.head, PlainHead).scale != 1,
        "tie_word_embeddings": a.tied,
        "dropout_rate": a.dropout,
        "vocab_size": vocab_size,
        "torch_dtype": "float32",
    }


def names(architecture: Architecture) -> list[Entry]:
    """One entry a tensor of `T5ForConditionalGeneration`."""
    entries = [Entry("shared.weight", ("embedding.weight",))]
    entries += _stack(architecture, "encoder", "encoder.", architecture.encoder_layers)
    entries += _stack(architecture, "decoder", "", architecture.layers)
    if not architecture.tied:
        entries.append(Entry("lm_head.weight", ("head.weight",)))
    return entries


def _stack(a: Architecture, theirs: str, ours: str, layers: int) -> list[Entry]:
    """A stack's blocks, its table of biases, which hangs on the first, and its last norm."""
    bias = f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    gated = isinstance(a.feedforward, GATED)
    linears = {"wi_0": "gate", "wi_1": "up", "wo": "down"} if gated else {"wi": "up", "wo": "down"}
    parts = [("SelfAttention", "attention"), *([] if ours else [("EncDecAttention", "cross")])]
    entries = [
        Entry(bias, (f"{ours}position.weight",)),
        Entry(f"{theirs}.final_layer_norm.weight", (f"{ours}final_norm.weight",)),
    ]
    for i in range(layers):
        block, own = f"{theirs}.block.{i}.layer", f"{ours}blocks.{i}"
        for j, (their, our) in enumerate(parts):
            entries.append(Entry(f"{block}.{j}.layer_norm.weight", (f"{own}.{our}_norm.weight",)))
            for letter, part in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "output")):
                entries.append(Entry(f"{block}.{j}.{their}.{letter}.weight", (f"{own}.{our}.{part}.weight",)))
        last = f"{block}.{len(parts)}"
        entries.append(Entry(f"{last}.layer_norm.weight", (f"{own}.feedforward_norm.weight",)))
        for their, our in linears.items():
            entries.append(Entry(f"{last}.DenseReluDense.{their}.weight", (f"{own}.feedforward.{our}.weight",)))
    return entries
