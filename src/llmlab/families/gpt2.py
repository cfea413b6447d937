"""GPT-2: pre-LayerNorm, learnt positions, GELU (tanh form), biases everywhere, one fused query-key-value matrix
stored [in, out] (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmlab.families.mapping import Entry, chosen, expect, only
from llmlab.model.attention import MultiHead
from llmlab.model.feedforward import GELU, GELUTanh, ReLU, Swish
from llmlab.model.norms import LayerNorm
from llmlab.model.positions import Learned
from llmlab.model.transformer import Architecture

MODEL_TYPE = "gpt2"
PUBLISHED = "2019-02"
PREFIX = "transformer."  # what a folder saved without its language-model wrapper lacks
IGNORED = (".attn.bias", ".attn.masked_bias")  # buffers that old folders hold

ACTIVATIONS: dict[str, type[GELU | GELUTanh | ReLU | Swish]] = {  # of several names for one, the first is written
    "gelu_new": GELUTanh,
    "gelu_pytorch_tanh": GELUTanh,
    "gelu": GELU,
    "relu": ReLU,
    "silu": Swish,
    "swish": Swish,
}


def read_config(config: Mapping[str, Any]) -> tuple[Architecture, int]:
    """A Hugging Face config.json as (architecture, vocab_size)."""
    only(config, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    activation = chosen(config, "activation_function", ACTIVATIONS, "gelu_new")
    return Architecture(
        layers=config["n_layer"],
        dim=config["n_embd"],
        context=config.get("n_positions", 1024),
        position=Learned(),
        norm=LayerNorm(eps=config.get("layer_norm_epsilon", 1e-5)),
        attention=MultiHead(heads=config["n_head"], bias=True),
        feedforward=activation(width=config.get("n_inner") or 4 * config["n_embd"], bias=True),
        tied=config.get("tie_word_embeddings", True),
        dropout=config.get("resid_pdrop", 0.1),
        initial_std=config.get("initializer_range", 0.02),
    ), config["vocab_size"]


def write_config(architecture: Architecture, vocab_size: int) -> dict[str, Any]:
    """The config.json of this architecture, or an error naming the part that GPT-2 does not have."""
    a, attention = architecture, architecture.keyed
    norm = expect("gpt2", "norm", a.norm, LayerNorm)
    feedforward = expect("gpt2", "feedforward", a.feedforward, *ACTIVATIONS.values())
    activation = next(name for name, member in ACTIVATIONS.items() if member is type(feedforward))
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": MODEL_TYPE,
        "n_layer": a.layers,
        "n_embd": a.dim,
        "n_positions": a.context,
        "n_head": attention.heads,
        "n_inner": feedforward.hidden_width(a.dim),
        "activation_function": activation,
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
    """One entry a tensor of `GPT2LMHeadModel`; its linears are stored [in, out]."""
    entries = [
        Entry("transformer.wte.weight", ("embedding.weight",)),
        Entry("transformer.wpe.weight", ("position.weight",)),
    ]
    entries += blocks(architecture)
    entries += [Entry(f"transformer.ln_f.{part}", (f"final_norm.{part}",)) for part in ("weight", "bias")]
    if not architecture.tied:
        entries.append(Entry("lm_head.weight", ("head.weight",)))
    return entries


def blocks(architecture: Architecture) -> list[Entry]:
    """The tensors of the layers, which GPT-1 names and stores alike."""
    entries = []
    for i in range(architecture.layers):
        theirs, ours = f"transformer.h.{i}", f"blocks.{i}"
        fused = tuple(f"{ours}.attention.{part}" for part in ("query", "key", "value"))
        linears = {
            "attn.c_attn": fused,
            "attn.c_proj": (f"{ours}.attention.output",),
            "mlp.c_fc": (f"{ours}.feedforward.up",),
            "mlp.c_proj": (f"{ours}.feedforward.down",),
        }
        for part in ("weight", "bias"):
            entries.append(Entry(f"{theirs}.ln_1.{part}", (f"{ours}.attention_norm.{part}",)))
            entries.append(Entry(f"{theirs}.ln_2.{part}", (f"{ours}.feedforward_norm.{part}",)))
            for their, our in linears.items():
                entries.append(
                    Entry(f"{theirs}.{their}.{part}", tuple(f"{name}.{part}" for name in our), part == "weight")
                )
    return entries
