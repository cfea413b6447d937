"""BLOOM: pre-LayerNorm with ALiBi, a norm on the embeddings, GELU (tanh form), biases everywhere, queries, keys and
values fused head by head (BigScience Workshop 2022, arXiv 2211.05100)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmlab.families.gpt_neox import fused
from llmlab.families.mapping import Entry, expect, only
from llmlab.model.attention import MultiHead
from llmlab.model.embedding import Embedding
from llmlab.model.feedforward import GELUTanh
from llmlab.model.norms import LayerNorm
from llmlab.model.relative import Alibi
from llmlab.model.transformer import Architecture

MODEL_TYPE = "bloom"
PUBLISHED = "2022-07"
PREFIX = "transformer."
IGNORED = ()


def read_config(config: Mapping[str, Any]) -> tuple[Architecture, int]:
    """A Hugging Face config.json as (architecture, vocab_size)."""
    only(config, apply_residual_connection_post_layernorm=False)
    dim = config["n_embed"] if config.get("n_embed") else config["hidden_size"]
    layers, heads = (config[old] if old in config else config[new] for old, new in ALSO.items())
    return Architecture(
        layers=layers,
        dim=dim,
        context=config.get("seq_length") or 2048,
        embedding=Embedding(norm=True),
        position=Alibi(),
        norm=LayerNorm(eps=config.get("layer_norm_epsilon", 1e-5)),
        attention=MultiHead(heads=heads, bias=True),
        feedforward=GELUTanh(width=4 * dim, bias=True),
        tied=config.get("tie_word_embeddings", True),
        dropout=config.get("hidden_dropout", 0.0),
        initial_std=config.get("initializer_range", 0.02),
    ), config["vocab_size"]


ALSO = {"n_layer": "num_hidden_layers", "n_head": "num_attention_heads"}  # two names of one field


def write_config(architecture: Architecture, vocab_size: int) -> dict[str, Any]:
    """The config.json of this architecture, or an error naming the part that BLOOM does not have."""
    a = architecture
    norm = expect(MODEL_TYPE, "norm", a.norm, LayerNorm)
    return {
        "architectures": ["BloomForCausalLM"],
        "model_type": MODEL_TYPE,
        "hidden_size": a.dim,
        "n_layer": a.layers,
        "n_head": a.attention.heads,
        "seq_length": a.context,
        "layer_norm_epsilon": norm.eps,
        "apply_residual_connection_post_layernorm": False,
        "hidden_dropout": a.dropout,
        "attention_dropout": 0.0,
        "tie_word_embeddings": a.tied,
        "initializer_range": a.initial_std or 0.02,
        "vocab_size": vocab_size,
        "torch_dtype": "float32",
    }


def names(architecture: Architecture) -> list[Entry]:
    """One entry a tensor of `BloomForCausalLM`."""
    a = architecture
    whole = {"word_embeddings_layernorm": "embedding_norm", "ln_f": "final_norm"}
    layer = {
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "feedforward_norm",
        "mlp.dense_h_to_4h": "feedforward.up",
        "mlp.dense_4h_to_h": "feedforward.down",
    }
    entries = [Entry("transformer.word_embeddings.weight", ("embedding.weight",))]
    for part in ("weight", "bias"):
        entries += [Entry(f"transformer.{theirs}.{part}", (f"{ours}.{part}",)) for theirs, ours in whole.items()]
    for i in range(a.layers):
        entries += fused(f"transformer.h.{i}.self_attention", f"blocks.{i}.attention", a.attention.heads, True)
        for part in ("weight", "bias"):
            entries += [
                Entry(f"transformer.h.{i}.{theirs}.{part}", (f"blocks.{i}.{ours}.{part}",))
                for theirs, ours in layer.items()
            ]
    if not a.tied:
        entries.append(Entry("lm_head.weight", ("head.weight",)))
    return entries
