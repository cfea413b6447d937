"""ChatGLM: two architectures behind one `model_type`. Neither is in transformers; parity is with the code that was
published beside the weights (`tests/families/golden`).

ChatGLM-6B (Zeng et al. 2022, GLM-130B, arXiv 2210.02414; weights March 2023): rotary positions on two axes, a prompt
that sees itself whole, biases everywhere, and a residual stream that leaves each norm: `x = norm(x)`, then
`x = alpha x + f(x)`. Read from one norm to the next that is `norm(alpha x + f(x))`, DeepNorm's wiring, with the first
layer's norm on the embeddings; so their norm of layer i + 1 is ours after the feed-forward of layer i.

ChatGLM2 and ChatGLM3 (weights June and October 2023): pre-RMSNorm, causal, rotary on half a head with neighbours
paired, SwiGLU, two key/value heads. Their config has `multi_query_attention`, which ChatGLM-6B's does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmlab.errors import InputError
from llmlab.families.mapping import Entry, expect
from llmlab.model.attention import GroupedQuery, MultiHead
from llmlab.model.block import DeepNorm, Pre
from llmlab.model.embedding import Embedding
from llmlab.model.feedforward import GELUTanh, SwiGLU
from llmlab.model.masks import Blank
from llmlab.model.norms import LayerNorm, RMSNorm
from llmlab.model.rotary import Float16, Rope, RopeInterleaved
from llmlab.model.transformer import Architecture

MODEL_TYPE = "chatglm"
PUBLISHED = "2023-03"
REMOTE = True  # its code lies beside its weights: transformers alone does not open it
PREFIX = "transformer."  # what a folder saved without its language-model wrapper lacks
IGNORED = ("rotary_emb.inv_freq", "rotary_pos_emb.inv_freq")  # buffers
# The released code hands no depth to its blocks, which then take that of the released model.
ALPHA = (2 * 28) ** 0.5


def read_config(config: Mapping[str, Any]) -> tuple[Architecture, int]:
    """A config.json of either generation as (architecture, vocab_size)."""
    for field in ("pre_seq_len", "quantization_bit"):
        if config.get(field):
            raise InputError(f"config.json: {field}", f"{config[field]} is not built", "only whole weights are read")
    return _second(config) if "multi_query_attention" in config else _first(config)


def _first(config: Mapping[str, Any]) -> tuple[Architecture, int]:
    if not config.get("position_encoding_2d", True):
        raise InputError("config.json: position_encoding_2d", "False is not built", "only True is")
    eps = config.get("layernorm_epsilon", 1e-5)
    start, gmask, mask = (config[f"{name}_token_id"] for name in ("bos", "gmask", "mask"))
    return Architecture(
        layers=config["num_layers"],
        dim=config["hidden_size"],
        context=config.get("max_sequence_length", 2048),
        mask=Blank(start_id=start, blank_ids=(gmask, mask)),
        embedding=Embedding(norm=True),
        position=Rope(axes=2, scaling=Float16()),
        norm=LayerNorm(eps=eps),
        attention=MultiHead(heads=config["num_attention_heads"], bias=True),
        feedforward=GELUTanh(width=config.get("inner_hidden_size") or 4 * config["hidden_size"], bias=True),
        wiring=DeepNorm(alpha=ALPHA),
        tied=config.get("tie_word_embeddings", False),
    ), config["vocab_size"]


def _second(config: Mapping[str, Any]) -> tuple[Architecture, int]:
    for field, built in (
        ("apply_residual_connection_post_layernorm", False),
        ("post_layer_norm", True),
        ("rope_ratio", 1),  # some releases divide positions by it, others multiply the base
    ):
        if config.get(field, built) != built:
            raise InputError(f"config.json: {field}", f"{config[field]} is not built", f"only {built} is")
    eps = config.get("layernorm_epsilon", 1e-5)
    biased = config.get("add_bias_linear", False)
    heads: dict[str, Any] = {
        "heads": config["num_attention_heads"],
        "head_dim": config.get("kv_channels") or config["hidden_size"] // config["num_attention_heads"],
        "bias": biased or config.get("add_qkv_bias", False),
        "output_bias": biased,
    }
    grouped = config["multi_query_attention"]
    return Architecture(
        layers=config["num_layers"],
        dim=config["hidden_size"],
        context=config.get("seq_length", 2048),
        position=RopeInterleaved(fraction=0.5),
        norm=RMSNorm(eps=eps) if config.get("rmsnorm", True) else LayerNorm(eps=eps),
        attention=GroupedQuery(kv_heads=config["multi_query_group_num"], **heads) if grouped else MultiHead(**heads),
        feedforward=SwiGLU(width=config["ffn_hidden_size"], bias=biased),
        wiring=Pre(),
        tied=config.get("tie_word_embeddings", False),
    ), config["padded_vocab_size"]


def write_config(architecture: Architecture, vocab_size: int) -> dict[str, Any]:
    """The config.json of this architecture, or an error naming the part that neither generation has."""
    a, attention = architecture, architecture.keyed
    shared = {
        "architectures": ["ChatGLMModel"],
        "model_type": MODEL_TYPE,
        "num_layers": a.layers,
        "hidden_size": a.dim,
        "num_attention_heads": attention.heads,
        "layernorm_epsilon": a.norm.eps,
        "tie_word_embeddings": a.tied,
        "torch_dtype": "float32",
    }
    if isinstance(a.wiring, DeepNorm):
        mask = expect(MODEL_TYPE, "mask", a.mask, Blank)
        if len(mask.blank_ids) != 2:
            raise InputError("model.mask.blank_ids", f"{len(mask.blank_ids)} of them", "chatglm has two")
        return shared | {
            "vocab_size": vocab_size,
            "max_sequence_length": a.context,
            "inner_hidden_size": a.feedforward.hidden_width(a.dim),
            "position_encoding_2d": True,
            "bos_token_id": mask.start_id,
            "gmask_token_id": mask.blank_ids[0],
            "mask_token_id": mask.blank_ids[1],
        }
    expect(MODEL_TYPE, "position", a.position, RopeInterleaved)
    return shared | {
        "padded_vocab_size": vocab_size,
        "vocab_size": vocab_size,
        "seq_length": a.context,
        "ffn_hidden_size": a.feedforward.hidden_width(a.dim),
        "kv_channels": attention.width(a.dim),
        "multi_query_attention": not isinstance(attention, MultiHead),
        "multi_query_group_num": 1 if isinstance(attention, MultiHead) else attention.key_heads,
        "add_bias_linear": a.feedforward.bias,
        "add_qkv_bias": attention.bias and not a.feedforward.bias,
        "rmsnorm": isinstance(a.norm, RMSNorm),
        "post_layer_norm": True,
        "apply_residual_connection_post_layernorm": False,
        "original_rope": True,
        "use_cache": True,  # its code asks for it
    }


def names(architecture: Architecture) -> list[Entry]:
    """One entry a tensor of `ChatGLMForConditionalGeneration`, of the generation that the wiring tells."""
    first = isinstance(architecture.wiring, DeepNorm)
    return _names_of_first(architecture) if first else _names_of_second(architecture)


def _names_of_first(a: Architecture) -> list[Entry]:
    entries = [Entry("transformer.word_embeddings.weight", ("embedding.weight",))]
    for i in range(a.layers):
        theirs, ours = f"transformer.layers.{i}", f"blocks.{i}"
        before = f"blocks.{i - 1}.feedforward_norm" if i else "embedding_norm"
        norms = {"input_layernorm": before, "post_attention_layernorm": f"{ours}.attention_norm"}
        for part in ("weight", "bias"):
            entries += [Entry(f"{theirs}.{their}.{part}", (f"{our}.{part}",)) for their, our in norms.items()]
            fused = tuple(f"{ours}.attention.{name}.{part}" for name in ("query", "key", "value"))
            entries.append(Entry(f"{theirs}.attention.query_key_value.{part}", fused, heads=a.attention.heads))
            entries.append(Entry(f"{theirs}.attention.dense.{part}", (f"{ours}.attention.output.{part}",)))
            entries.append(Entry(f"{theirs}.mlp.dense_h_to_4h.{part}", (f"{ours}.feedforward.up.{part}",)))
            entries.append(Entry(f"{theirs}.mlp.dense_4h_to_h.{part}", (f"{ours}.feedforward.down.{part}",)))
    last = f"blocks.{a.layers - 1}.feedforward_norm"
    entries += [Entry(f"transformer.final_layernorm.{part}", (f"{last}.{part}",)) for part in ("weight", "bias")]
    if not a.tied:
        entries.append(Entry("lm_head.weight", ("head.weight",)))
    return entries


def _names_of_second(a: Architecture) -> list[Entry]:
    attention = a.keyed
    both, weight = ("weight", "bias"), ("weight",)
    norm = both if isinstance(a.norm, LayerNorm) else weight
    entries = [Entry("transformer.embedding.word_embeddings.weight", ("embedding.weight",))]
    for i in range(a.layers):
        theirs, ours = f"transformer.encoder.layers.{i}", f"blocks.{i}"
        for part in norm:
            entries.append(Entry(f"{theirs}.input_layernorm.{part}", (f"{ours}.attention_norm.{part}",)))
            entries.append(Entry(f"{theirs}.post_attention_layernorm.{part}", (f"{ours}.feedforward_norm.{part}",)))
        for part in both if attention.bias else weight:
            fused = tuple(f"{ours}.attention.{name}.{part}" for name in ("query", "key", "value"))
            by_head = attention.heads if isinstance(attention, MultiHead) else 0
            entries.append(Entry(f"{theirs}.self_attention.query_key_value.{part}", fused, heads=by_head))
        for part in both if attention.biased_output else weight:
            entries.append(Entry(f"{theirs}.self_attention.dense.{part}", (f"{ours}.attention.output.{part}",)))
        for part in both if a.feedforward.bias else weight:
            halves = tuple(f"{ours}.feedforward.{name}.{part}" for name in ("gate", "up"))
            entries.append(Entry(f"{theirs}.mlp.dense_h_to_4h.{part}", halves))
            entries.append(Entry(f"{theirs}.mlp.dense_4h_to_h.{part}", (f"{ours}.feedforward.down.{part}",)))
    entries += [Entry(f"transformer.encoder.final_layernorm.{part}", (f"final_norm.{part}",)) for part in norm]
    if not a.tied:
        entries.append(Entry("transformer.output_layer.weight", ("head.weight",)))
    return entries
