"""GPT-NeoX and Pythia: attention and feed-forward side by side, each with a LayerNorm, rotary positions on a part of
each head, queries, keys and values fused head by head (Black et al. 2022, arXiv 2204.06745)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmlab.families.gpt2 import ACTIVATIONS
from llmlab.families.llama import divides
from llmlab.families.mapping import Entry, chosen, expect
from llmlab.families.rope import older, read_rope, stated, write_rope
from llmlab.model.attention import MultiHead
from llmlab.model.block import Parallel, Pre
from llmlab.model.norms import LayerNorm
from llmlab.model.rotary import Rope
from llmlab.model.transformer import Architecture

MODEL_TYPE = "gpt_neox"
PUBLISHED = "2022-02"
PREFIX = "gpt_neox."
HEAD = "embed_out.weight"
IGNORED = (".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq")  # buffers that old folders hold


def read_config(config: Mapping[str, Any]) -> tuple[Architecture, int]:
    """A Hugging Face config.json as (architecture, vocab_size)."""
    config = {"max_position_embeddings": 2048, **config}
    activation = chosen(config, "hidden_act", ACTIVATIONS, "gelu")
    base, fraction = config.get("rotary_emb_base") or 10_000.0, config.get("rotary_pct", 0.25)
    return Architecture(
        layers=config["num_hidden_layers"],
        dim=config["hidden_size"],
        context=config["max_position_embeddings"],
        position=read_rope(stated(config), config, base, Rope, fraction),
        norm=LayerNorm(eps=config.get("layer_norm_eps", 1e-5)),
        attention=MultiHead(heads=config["num_attention_heads"], bias=config.get("attention_bias", True)),
        feedforward=activation(width=config["intermediate_size"], bias=True),
        wiring=Parallel() if config.get("use_parallel_residual", True) else Pre(),
        tied=config.get("tie_word_embeddings", False),
        dropout=config.get("hidden_dropout", 0.0),
        initial_std=config.get("initializer_range", 0.02),
    ), config["vocab_size"]


def write_config(architecture: Architecture, vocab_size: int) -> dict[str, Any]:
    """The config.json of this architecture, or an error naming the part that GPT-NeoX does not have."""
    a, attention = architecture, architecture.keyed
    divides(MODEL_TYPE, a)
    norm = expect(MODEL_TYPE, "norm", a.norm, LayerNorm)
    feedforward = expect(MODEL_TYPE, "feedforward", a.feedforward, *ACTIVATIONS.values())
    position = expect(MODEL_TYPE, "position", a.position, Rope)
    fields = write_rope(position, attention.width(a.dim)) | {"partial_rotary_factor": position.fraction}
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": MODEL_TYPE,
        "hidden_size": a.dim,
        "intermediate_size": feedforward.hidden_width(a.dim),
        "num_hidden_layers": a.layers,
        "num_attention_heads": attention.heads,
        "max_position_embeddings": a.context,
        "rope_parameters": fields,
        "rotary_emb_base": fields["rope_theta"],
        "rotary_pct": position.fraction,
        "layer_norm_eps": norm.eps,
        "hidden_act": next(name for name, member in ACTIVATIONS.items() if member is type(feedforward)),
        "attention_bias": attention.bias,
        "use_parallel_residual": isinstance(a.wiring, Parallel),
        "hidden_dropout": a.dropout,
        "attention_dropout": 0.0,
        "tie_word_embeddings": a.tied,
        "initializer_range": a.initial_std or 0.02,
        "vocab_size": vocab_size,
        "torch_dtype": "float32",
    } | older(fields)


def names(architecture: Architecture) -> list[Entry]:
    """One entry a tensor of `GPTNeoXForCausalLM`."""
    a, attention = architecture, architecture.keyed
    entries = [Entry("gpt_neox.embed_in.weight", ("embedding.weight",))]
    for i in range(a.layers):
        theirs, ours = f"gpt_neox.layers.{i}", f"blocks.{i}"
        entries += fused(f"{theirs}.attention", f"{ours}.attention", attention.heads, attention.bias)
        for part in ("weight", "bias"):
            entries += [
                Entry(f"{theirs}.input_layernorm.{part}", (f"{ours}.attention_norm.{part}",)),
                Entry(f"{theirs}.post_attention_layernorm.{part}", (f"{ours}.feedforward_norm.{part}",)),
                Entry(f"{theirs}.mlp.dense_h_to_4h.{part}", (f"{ours}.feedforward.up.{part}",)),
                Entry(f"{theirs}.mlp.dense_4h_to_h.{part}", (f"{ours}.feedforward.down.{part}",)),
            ]
    entries += [Entry(f"gpt_neox.final_layer_norm.{part}", (f"final_norm.{part}",)) for part in ("weight", "bias")]
    if not a.tied:
        entries.append(Entry(HEAD, ("head.weight",)))
    return entries


def fused(theirs: str, ours: str, heads: int, bias: bool) -> list[Entry]:
    """Attention whose queries, keys and values are stacked head by head, as BLOOM has it too."""
    entries = []
    for part in ("weight", "bias") if bias else ("weight",):
        three = tuple(f"{ours}.{name}.{part}" for name in ("query", "key", "value"))
        entries.append(Entry(f"{theirs}.query_key_value.{part}", three, heads=heads))
        entries.append(Entry(f"{theirs}.dense.{part}", (f"{ours}.output.{part}",)))
    return entries
