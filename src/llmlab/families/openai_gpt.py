"""GPT-1: post-LayerNorm and so no final norm, learnt positions, GELU (tanh form), biases everywhere; its layers are
named and stored as GPT-2's (Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmlab.families.gpt2 import blocks
from llmlab.families.mapping import Entry, chosen, expect
from llmlab.model.attention import MultiHead
from llmlab.model.block import Post
from llmlab.model.feedforward import GELUTanh, ReLU, Swish
from llmlab.model.norms import LayerNorm
from llmlab.model.positions import Learned
from llmlab.model.transformer import Architecture

MODEL_TYPE = "openai-gpt"
PUBLISHED = "2018-06"
PREFIX = "transformer."
IGNORED = (".attn.bias", "position_ids")  # buffers that old folders hold

# Its "gelu" is the tanh form. Of several names for one, the first is written.
ACTIVATIONS: dict[str, type[GELUTanh | ReLU | Swish]] = {
    "gelu": GELUTanh,
    "gelu_new": GELUTanh,
    "relu": ReLU,
    "silu": Swish,
    "swish": Swish,
}


def read_config(config: Mapping[str, Any]) -> tuple[Architecture, int]:
    """A Hugging Face config.json as (architecture, vocab_size)."""
    activation = chosen(config, "afn", ACTIVATIONS, "gelu")
    return Architecture(
        layers=config["n_layer"],
        dim=config["n_embd"],
        context=config.get("n_positions", 512),
        position=Learned(),
        norm=LayerNorm(eps=config.get("layer_norm_epsilon", 1e-5)),
        attention=MultiHead(heads=config["n_head"], bias=True),
        feedforward=activation(width=4 * config["n_embd"], bias=True),
        wiring=Post(),
        tied=config.get("tie_word_embeddings", True),
        dropout=config.get("resid_pdrop", 0.1),
        initial_std=config.get("initializer_range", 0.02),
    ), config["vocab_size"]


def write_config(architecture: Architecture, vocab_size: int) -> dict[str, Any]:
    """The config.json of this architecture, or an error naming the part that GPT-1 does not have."""
    a = architecture
    norm = expect(MODEL_TYPE, "norm", a.norm, LayerNorm)
    feedforward = expect(MODEL_TYPE, "feedforward", a.feedforward, *ACTIVATIONS.values())
    return {
        "architectures": ["OpenAIGPTLMHeadModel"],
        "model_type": MODEL_TYPE,
        "n_layer": a.layers,
        "n_embd": a.dim,
        "n_positions": a.context,
        "n_head": a.attention.heads,
        "afn": next(name for name, member in ACTIVATIONS.items() if member is type(feedforward)),
        "layer_norm_epsilon": norm.eps,
        "resid_pdrop": a.dropout,
        "embd_pdrop": a.dropout,
        "attn_pdrop": 0.0,
        "tie_word_embeddings": a.tied,
        "initializer_range": a.initial_std or 0.02,
        "vocab_size": vocab_size,
        "torch_dtype": "float32",
    }


def names(architecture: Architecture) -> list[Entry]:
    """One entry a tensor of `OpenAIGPTLMHeadModel`; its linears are stored [in, out]."""
    entries = [
        Entry("transformer.tokens_embed.weight", ("embedding.weight",)),
        Entry("transformer.positions_embed.weight", ("position.weight",)),
        *blocks(architecture),
    ]
    if not architecture.tied:
        entries.append(Entry("lm_head.weight", ("head.weight",)))
    return entries
