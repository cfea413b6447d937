"""Models in GGUF files, as llama.cpp's converter writes them: llama, with its tokenizer and chat template."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from llmlab.checkpoints.bundle import Bundle, fill, matching, skeleton
from llmlab.checkpoints.gguf_file import GGUF
from llmlab.errors import InputError, unknown
from llmlab.families import llama
from llmlab.families.mapping import Entry, pair_halves, to_ours
from llmlab.model.attention import GroupedQuery
from llmlab.model.feedforward import SwiGLU
from llmlab.model.norms import RMSNorm
from llmlab.model.rotary import Rope
from llmlab.model.transformer import Architecture
from llmlab.tokenization.tokenizer import Tokenizer

# Hugging Face's names of a LLaMA's tensors, and llama.cpp's.
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
# What the file says about a llama and we obey, or that does not touch its arithmetic. Any other field might.
UNDERSTOOD = {
    *("block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size", "tensor_data_layout"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
    *("attention.layer_norm_rms_epsilon", "rope.dimension_count", "rope.freq_base", "rope.scaling.type"),
    *("expert_count", "expert_used_count", "rope.scale_linear", "rope.scaling.factor"),
}


def read(path: Path) -> Bundle:
    """A model from a GGUF file, dequantised to fp32, with the tokenizer and chat template of the file.

    Errors: InputError for a damaged file, another architecture than llama, a field that changes the arithmetic in a
    way that is not built, and a missing, unknown or misshapen tensor.
    """
    file = GGUF(path)
    architecture, vocab_size = _architecture(file)
    tokenizer = matching(_tokenizer(file), vocab_size, str(path))
    model = skeleton(architecture, vocab_size, file.tensors, str(path))
    entries = [replace(entry, theirs=_name(entry)) for entry in llama.names(architecture)]
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    try:
        state = to_ours(entries, file.state(), shapes, "", [])
    except InputError as error:
        raise InputError(f"{path}: {error.place}", error.problem, error.hint) from None
    # llama.cpp turns neighbouring rows of queries and keys, so its converter had interleaved the two halves.
    heads = {"query": architecture.keyed.heads, "key": architecture.keyed.key_heads}
    for name in state:
        if (part := name.split(".")[-2]) in heads:
            state[name] = pair_halves(state[name], heads[part])
    return Bundle(fill(model, state, str(path)), tokenizer, architecture, str(path))


def _name(entry: Entry) -> str:
    """llama.cpp's name of a tensor: `model.layers.3.self_attn.q_proj.weight` is `blk.3.attn_q.weight`."""
    stem, _, part = entry.theirs.rpartition(".")
    if stem in NAMES:
        return f"{NAMES[stem]}.{part}"
    layer, _, stem = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{NAMES[stem]}.{part}"


def _field(file: GGUF, key: str, kind: type, default: Any = None) -> Any:
    """A field of this kind; a number where the specification has an integer may not be a truth value."""
    value = file.fields.get(key, default)
    if value is None:
        raise InputError(str(file.path), f"the field {key} is missing")
    if type(value) is not kind:
        shown = value if isinstance(value, str | int | float | bool) else "a list"
        raise InputError(str(file.path), f"the field {key} is {str(shown)[:80]!r}, not one {kind.__name__}")
    return value


def _architecture(file: GGUF) -> tuple[Architecture, int]:
    """The architecture by the file's fields, its sizes held against the embedding before anything is built."""
    place = str(file.path)
    family = _field(file, "general.architecture", str)
    if family != llama.MODEL_TYPE:
        raise unknown(f"{place}: general.architecture", family[:80], [llama.MODEL_TYPE])
    for key in file.fields:
        if key.startswith("llama.") and key.removeprefix("llama.") not in UNDERSTOOD:
            raise InputError(place, f"the field {key} is not built", "it may change what the model computes")

    def count(key: str, default: int | None = None) -> int:
        value: int = _field(file, f"llama.{key}", int, default)
        return value

    embedding = file.tensors.get("token_embd.weight")
    dim, heads = count("embedding_length"), count("attention.head_count")
    if embedding is None or len(embedding.shape) != 2 or embedding.shape[1] != dim:
        shape = "missing" if embedding is None else f"of shape {list(embedding.shape)}"
        raise InputError(f"{place}: token_embd.weight", f"is {shape}, where [tokens, {dim}] was expected")
    if not 1 <= heads <= dim:
        raise InputError(place, f"llama.attention.head_count is {heads}, for a width of {dim}")
    width = count("attention.key_length", dim // heads)
    scaling = _field(file, "llama.rope.scaling.type", str, "none")
    linear = [_field(file, f"llama.{key}", float, 1.0) for key in ("rope.scale_linear", "rope.scaling.factor")]
    for key, value, built in (
        ("attention.value_length", count("attention.value_length", width), width),
        ("rope.dimension_count", count("rope.dimension_count", width), width),
        ("expert_count", count("expert_count", 0), 0),
        ("rope.scaling.type", scaling, "none"),
        ("rope.scaling.factor", max(linear), 1.0),
    ):
        if value != built:
            raise InputError(place, f"llama.{key} is {str(value)[:80]!r}, which is not built", f"only {built} is")
    if "rope_freqs.weight" in file.tensors:
        raise InputError(f"{place}: rope_freqs.weight", "rotary positions scaled as in Llama 3.1 are not built yet")
    try:
        architecture = Architecture(
            layers=count("block_count"),
            dim=dim,
            context=count("context_length"),
            position=Rope(base=_field(file, "llama.rope.freq_base", float, 10_000.0)),
            norm=RMSNorm(eps=_field(file, "llama.attention.layer_norm_rms_epsilon", float)),
            attention=GroupedQuery(
                heads=heads,
                kv_heads=count("attention.head_count_kv", heads),
                head_dim=width,
                bias="blk.0.attn_q.bias" in file.tensors,
            ),
            feedforward=SwiGLU(width=count("feed_forward_length"), bias="blk.0.ffn_gate.bias" in file.tensors),
            tied="output.weight" not in file.tensors,
        )
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InputError(place, f"gives an impossible architecture: {field} {first['msg']}") from None
    return architecture, embedding.shape[0]


def _tokenizer(file: GGUF) -> Tokenizer | None:
    """The tokenizer of the file, None where it has none."""
    place, prefix = str(file.path), "tokenizer.ggml"
    if f"{prefix}.model" not in file.fields:
        return None
    kind = _field(file, f"{prefix}.model", str)

    def strings(name: str) -> list[str]:
        value: list[str] = _field(file, f"{prefix}.{name}", list)
        if not all(isinstance(item, str) for item in value):
            raise InputError(place, f"the field {prefix}.{name} is no list of strings")
        return value

    tokens = strings("tokens")

    def token_id(name: str) -> int | None:
        if (key := f"{prefix}.{name}_token_id") not in file.fields:
            return None
        value: int = _field(file, key, int)
        if not 0 <= value < len(tokens):
            raise InputError(place, f"the field {key} is {value}, of {len(tokens)} tokens")
        return value

    def flag(name: str) -> bool | None:
        key = f"{prefix}.{name}"
        return _field(file, key, bool) if key in file.fields else None

    def numbers(name: str) -> list[Any] | None:
        value = file.fields.get(f"{prefix}.{name}")
        if value is not None and (not isinstance(value, np.ndarray) or len(value) != len(tokens)):
            raise InputError(place, f"the field {prefix}.{name} is no number for each of {len(tokens)} tokens")
        return None if value is None else value.tolist()

    template = _field(file, "tokenizer.chat_template", str, "") or None
    special: dict[str, Any] = {
        "bos": token_id("bos"),
        "eos": token_id("eos"),
        "pad": token_id("padding"),
        "unk": token_id("unknown"),
        "chat_template": template,
        "add_bos": _field(file, f"{prefix}.add_bos_token", bool, kind == "llama"),
    }
    match kind:
        case "gpt2":
            pre = _field(file, f"{prefix}.pre", str, "default")
            return Tokenizer.from_bpe(tokens, strings("merges"), pre=pre, types=numbers("token_type"), **special)
        case "llama":
            if (scores := numbers("scores")) is None:
                raise InputError(place, f"the field {prefix}.scores is missing")
            blank = _field(file, f"{prefix}.add_space_prefix", bool, True)
            return Tokenizer.from_sentencepiece(
                tokens, scores, numbers("token_type"), add_space_prefix=blank, **special
            )
        case "bert":
            cls, sep = token_id("cls"), token_id("seperator")  # llama.cpp's spelling of the key
            return Tokenizer.from_wordpiece(
                tokens,
                lowercase=flag("normalizer.lowercase"),
                strip_accents=flag("normalizer.strip_accents"),
                cls=special["bos"] if cls is None else cls,
                sep=special["eos"] if sep is None else sep,
                mask=token_id("mask"),
                **{role: special[role] for role in ("pad", "unk", "eos")},
            )
    raise unknown(f"{place}: {prefix}.model", kind[:80], ["gpt2", "llama", "bert"])
