"""BERT: an encoder with LayerNorm after each half of a block, learnt positions, a vector for each text of a pair, and
two heads: masked tokens, and whether the second text follows the first (Devlin et al. 2018, arXiv 1810.04805). Sentence
encoders such as MiniLM are its trunk alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from llmlab.errors import InputError, unknown
from llmlab.families.gpt2 import ACTIVATIONS
from llmlab.families.mapping import Entry, chosen, expect, only
from llmlab.model.attention import MultiHead
from llmlab.model.block import Post
from llmlab.model.embedding import Embedding
from llmlab.model.feedforward import GELU, GELUTanh, ReLU, Swish
from llmlab.model.heads import NoHead, TransformedHead
from llmlab.model.masks import Bidirectional
from llmlab.model.norms import LayerNorm
from llmlab.model.positions import Learned
from llmlab.model.transformer import Architecture

MODEL_TYPE = "bert"
PUBLISHED = "2018-10"
PREFIX = "bert."
IGNORED = ("position_ids", "token_type_ids")  # buffers that old folders hold
HEAD = "cls.predictions.decoder.weight"
TIED = ("cls.predictions.decoder.bias",)
RENAMED = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}  # from TensorFlow

# transformers' classes: whether they have a head of masked tokens, and one of pairs.
CLASSES = {
    "BertForPreTraining": (True, True),
    "BertForMaskedLM": (True, False),
    "BertForNextSentencePrediction": (False, True),
    "BertModel": (False, False),
}


def settle(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The class by the heads that are there: folders hold more and fewer than their config names."""
    return heads_there(config, tensors, CLASSES, "cls.predictions.bias", "cls.seq_relationship.weight", "pooler.dense")


def read_config(config: Mapping[str, Any]) -> tuple[Architecture, int]:
    """A Hugging Face config.json as (architecture, vocab_size)."""
    trunk = read_trunk(config)
    head, pooled = read_heads(config, CLASSES, trunk["feedforward"])
    position = Learned()
    context = config.get("max_position_embeddings", 512)
    return Architecture(**trunk, position=position, context=context, head=head, pooled=pooled), config["vocab_size"]


def write_config(architecture: Architecture, vocab_size: int) -> dict[str, Any]:
    """The config.json of this architecture, or an error naming the part that BERT does not have."""
    config = write_trunk(architecture, MODEL_TYPE) | write_heads(architecture, CLASSES)
    return config | {"max_position_embeddings": architecture.context, "vocab_size": vocab_size}


def names(architecture: Architecture) -> list[Entry]:
    """One entry a tensor of the class that has these heads."""
    entries = trunk_names(architecture, MODEL_TYPE)
    if isinstance(architecture.head, TransformedHead):
        entries.append(Entry("cls.predictions.bias", ("head_bias",)))
        entries += both("cls.predictions.transform.dense", "transform.linear")
        entries += both("cls.predictions.transform.LayerNorm", "transform.norm")
    if architecture.pooled:
        entries += both("cls.seq_relationship", "pooler.classify")
    return entries


# ---------------------------------------------------------------- what its kin have too


def read_trunk(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Architecture` below the heads, positions aside."""
    only(config, position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
    only(config, tie_word_embeddings=True)
    activation = chosen(config, "hidden_act", ACTIVATIONS, "gelu")
    return {
        "layers": config["num_hidden_layers"],
        "dim": config["hidden_size"],
        "mask": Bidirectional(),
        "embedding": Embedding(norm=True, segments=config.get("type_vocab_size", 2)),
        "norm": LayerNorm(eps=config.get("layer_norm_eps", 1e-12)),
        "attention": MultiHead(heads=config["num_attention_heads"], bias=True),
        "feedforward": activation(width=config["intermediate_size"], bias=True),
        "wiring": Post(),
        "tied": True,
        "dropout": config.get("hidden_dropout_prob", 0.1),
        "initial_std": config.get("initializer_range", 0.02),
    }


def write_trunk(a: Architecture, model_type: str) -> dict[str, Any]:
    """The fields of config.json that `read_trunk` reads."""
    norm = expect(model_type, "norm", a.norm, LayerNorm)
    feedforward = expect(model_type, "feedforward", a.feedforward, *ACTIVATIONS.values())
    return {
        "model_type": model_type,
        "hidden_size": a.dim,
        "num_hidden_layers": a.layers,
        "num_attention_heads": a.keyed.heads,
        "intermediate_size": feedforward.hidden_width(a.dim),
        "hidden_act": next(name for name, member in ACTIVATIONS.items() if member is type(feedforward)),
        "hidden_dropout_prob": a.dropout,
        "attention_probs_dropout_prob": a.dropout,
        "type_vocab_size": a.embedding.segments,
        "layer_norm_eps": norm.eps,
        "tie_word_embeddings": True,
        "initializer_range": a.initial_std or 0.02,
        "torch_dtype": "float32",
    }


def read_heads(
    config: Mapping[str, Any], classes: Mapping[str, tuple[bool, bool]], activation: GELU | GELUTanh | ReLU | Swish
) -> tuple[TransformedHead | NoHead, int | None]:
    """`head` and `pooled` by the class that the config names, the first of `classes` where it names none."""
    name = (config.get("architectures") or [next(iter(classes))])[0]
    if name not in classes:
        raise unknown("config.json: architectures", str(name), classes)
    tokens, pairs = classes[name]
    pooler = pairs or config.get("add_pooling_layer", not tokens)
    plain = type(activation)()
    return TransformedHead(activation=plain) if tokens else NoHead(), 2 if pairs else 0 if pooler else None


def write_heads(a: Architecture, classes: Mapping[str, tuple[bool, bool]]) -> dict[str, Any]:
    """The class with these heads; `add_pooling_layer` is ours, for what no class says."""
    found = (isinstance(a.head, TransformedHead), bool(a.pooled))
    name = next((name for name, heads in classes.items() if heads == found), None)
    if name is None:
        raise InputError("model.pooled", f"{a.pooled} with head {a.head.kind} is none of {', '.join(classes)}")
    return {"architectures": [name], "add_pooling_layer": a.pooled is not None}


def heads_there(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    classes: Mapping[str, tuple[bool, bool]],
    *marks: str,
) -> dict[str, Any]:
    """The config with the class of the heads that `tensors` hold; `marks` are names of the tokens' head, of the pairs'
    (empty: there is none) and of the pooler. A class that is not one of ours stays, to be refused by its name."""
    tokens, pairs, pooler = (bool(mark) and any(mark in name for name in tensors) for mark in marks)
    if (config.get("architectures") or [next(iter(classes))])[0] not in classes:
        return dict(config)
    name = next((name for name, heads in classes.items() if heads == (tokens, pairs)), next(iter(classes)))
    return {**config, "architectures": [name], "add_pooling_layer": pooler}


def trunk_names(a: Architecture, prefix: str) -> list[Entry]:
    """Embeddings, blocks and pooler."""
    entries = embedding_names(prefix)
    for i in range(a.layers):
        theirs, ours = f"{prefix}.encoder.layer.{i}", f"blocks.{i}"
        for part in ("query", "key", "value"):
            entries += both(f"{theirs}.attention.self.{part}", f"{ours}.attention.{part}")
        entries += both(f"{theirs}.attention.output.dense", f"{ours}.attention.output")
        entries += both(f"{theirs}.attention.output.LayerNorm", f"{ours}.attention_norm")
        entries += both(f"{theirs}.intermediate.dense", f"{ours}.feedforward.up")
        entries += both(f"{theirs}.output.dense", f"{ours}.feedforward.down")
        entries += both(f"{theirs}.output.LayerNorm", f"{ours}.feedforward_norm")
    return entries + (both(f"{prefix}.pooler.dense", "pooler.pool") if a.pooled is not None else [])


def embedding_names(prefix: str) -> list[Entry]:
    """The three tables and their norm."""
    return [
        Entry(f"{prefix}.embeddings.word_embeddings.weight", ("embedding.weight",)),
        Entry(f"{prefix}.embeddings.position_embeddings.weight", ("position.weight",)),
        Entry(f"{prefix}.embeddings.token_type_embeddings.weight", ("segment",)),
        *both(f"{prefix}.embeddings.LayerNorm", "embedding_norm"),
    ]


def both(theirs: str, ours: str) -> list[Entry]:
    """The weight and the bias of a linear map or a norm."""
    return [Entry(f"{theirs}.{part}", (f"{ours}.{part}",)) for part in ("weight", "bias")]
