"""Models in GGUF files, as llama.cpp's own converter writes them: the architectures of `gguf_names`, with tokenizer
and chat template."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from pydantic import ValidationError
from torch import Tensor

from llmlab.checkpoints.bundle import Bundle, Stored, fit, matching, skeleton
from llmlab.checkpoints.gguf_file import GGUF, LEAST_STEP, ROUNDING, write_gguf
from llmlab.checkpoints.gguf_names import DIALECTS, EMBEDDING, OUTPUT, Dialect, dialect_of, scaled
from llmlab.checkpoints.gguf_tokenizer import read_tokenizer, tokenizer_fields
from llmlab.checkpoints.native import plain_state
from llmlab.errors import InputError, unknown
from llmlab.families.mapping import Entry, pair_halves, pair_neighbours, to_ours
from llmlab.model.groups import Weight
from llmlab.model.transformer import Architecture, Transformer
from llmlab.tokenization.tokenizer import Tokenizer

Q = GGMLQuantizationType
# What --type may be: the type of the matrices, and the number by which a file's header calls the mixture.
TYPES = {"f32": (Q.F32, 0), "f16": (Q.F16, 1), "q8_0": (Q.Q8_0, 7), "q4_0": (Q.Q4_0, 2), "q4_1": (Q.Q4_1, 3)}
QUANTIZATION_VERSION = 2


# ---------------------------------------------------------------- reading


def read(path: Path) -> Bundle:
    """A model from a GGUF file, with the tokenizer and chat template of the file. Its weights are read when they are
    asked for: dequantised to fp32, or as they lie there.

    Errors: InputError for a damaged file, an architecture that is not read, a field that changes the arithmetic in a
    way that is not built, and a missing, unknown or misshapen tensor.
    """
    file = GGUF(path)
    dialect, config, settings = _config(file)
    architecture = _architecture(path, dialect, config)
    vocab_size = config["vocab_size"]
    tokenizer = matching(read_tokenizer(file), vocab_size, str(path))
    model = skeleton(architecture, vocab_size, file.tensors, str(path))
    entries = dialect.entries(architecture)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    promised = {name: torch.empty(entry.shape, device="meta") for name, entry in file.tensors.items()}
    try:
        state = to_ours(entries, promised, shapes, "", [])
    except InputError as error:
        raise InputError(f"{path}: {error.place}", error.problem, error.hint) from None
    fit(model, {name: tensor.shape for name, tensor in state.items()}, str(path))
    turned = dict(dialect.turned(entries, settings).values())
    return Bundle(Stored(model, _reader(file, entries, shapes, turned), str(path)), tokenizer, architecture, str(path))


def _reader(
    file: GGUF, entries: Sequence[Entry], shapes: dict[str, torch.Size], turned: dict[str, int]
) -> Callable[[str], Weight]:
    """Weights by our names; `turned` is how many heads there are in those whose rows are paired as neighbours."""
    of = {name: entry for entry in entries for name in entry.ours}

    @lru_cache(maxsize=1)  # those that are stacked are asked for one after another
    def parts(entry: Entry) -> dict[str, Tensor]:
        return dict(zip(entry.ours, entry.split(file.tensor(entry.theirs), shapes), strict=True))

    def read(name: str) -> Weight:
        entry, heads = of[name], turned.get(name)
        alone = entry == Entry(entry.theirs, (name,))
        if alone and (groups := file.groups(entry.theirs)) is not None:
            return groups if heads is None else groups.rows(pair_halves(torch.arange(len(groups.codes)), heads).numpy())
        tensor = parts(entry)[name]
        return tensor if heads is None else pair_halves(tensor, heads)

    return read


def _config(file: GGUF) -> tuple[Dialect, dict[str, Any], dict[str, Any]]:
    """What the file says as a Hugging Face config would, and by its own keys; sizes held against the embedding."""
    place = str(file.path)
    name = file.field("general.architecture", str)
    if name not in DIALECTS:
        raise unknown(f"{place}: general.architecture", name[:80], DIALECTS)
    dialect = DIALECTS[name]
    for field in file.fields:
        if field.startswith(f"{name}.") and field.removeprefix(f"{name}.") not in dialect.understood():
            raise InputError(place, f"the field {field} is not built", "it may change what the model computes")
    config: dict[str, Any] = {**dialect.fixed, **dialect.unsaid}
    said: dict[str, Any] = {}
    for key in dialect.keys:
        if f"{name}.{key.theirs}" in file.fields or not key.optional:
            value = file.field(f"{name}.{key.theirs}", key.kind)
            if key.kind is int and value < 1:
                raise InputError(place, f"gives an impossible architecture: {name}.{key.theirs} is {value}")
            said[key.theirs] = config[key.config] = _decimal(value) if key.kind is float else value
    dim, heads = said["embedding_length"], said["attention.head_count"]
    embedding = file.tensors.get(EMBEDDING)
    if embedding is None or len(embedding.shape) != 2 or embedding.shape[1] != dim:
        shape = "missing" if embedding is None else f"of shape {list(embedding.shape)}"
        raise InputError(f"{place}: {EMBEDDING}", f"is {shape}, where [tokens, {dim}] was expected")
    if heads > dim:
        raise InputError(place, f"{name}.attention.head_count is {heads}, for a width of {dim}")
    said = {"attention.head_count_kv": heads, "attention.key_length": dim // heads, **said}
    config |= {key.config: said[key.theirs] for key in dialect.keys if key.theirs in said}
    for copy, source in dialect.copies.items():
        _expect(file, f"{name}.{copy}", said[source])
    for plain, value in dialect.plain.items():
        _expect(file, f"{name}.{plain}", value)
    if "rope_freqs.weight" in file.tensors:
        raise InputError(f"{place}: rope_freqs.weight", "rotary positions scaled as in Llama 3.1 are not built yet")
    config |= {flag: tensor in file.tensors for flag, tensor in dialect.flags.items()}
    config |= {"vocab_size": embedding.shape[0], "tie_word_embeddings": OUTPUT not in file.tensors}
    return dialect, scaled(config, place), said


def _expect(file: GGUF, key: str, built: Any) -> None:
    value = file.field(key, type(built), built)
    if value != built:
        raise InputError(str(file.path), f"{key} is {str(value)[:80]!r}, which is not built", f"only {built} is")


def _decimal(value: float) -> float:
    """The shortest decimal of a 32-bit float: 1e-06, and not 9.999999974752427e-07, is what was meant."""
    return float(str(np.float32(value)))


def _architecture(path: Path, dialect: Dialect, config: dict[str, Any]) -> Architecture:
    try:
        architecture: Architecture = dialect.family.read_config(config)[0]
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InputError(str(path), f"gives an impossible architecture: {field} {first['msg']}") from None
    except InputError as error:
        raise InputError(str(path), f"{error.place}: {error.problem}", error.hint) from None
    return architecture


# ---------------------------------------------------------------- writing


def write(path: Path, model: Transformer, tokenizer: Tokenizer | None, kind: str = "f16") -> list[str]:
    """Write a model to a GGUF file that llama.cpp opens, its matrices in the type `kind` (a key of `TYPES`).

    As llama.cpp does: norms, biases and learnt positions stay F32. Where matrices become four bits wide, the one that
    gives the logits is Q8_0. Answers the names of the matrices whose rows are no whole blocks of 32: they are F16.
    Errors: InputError for a type, an architecture or a tokenizer that GGUF has not, or a weight beyond the type.
    """
    if kind not in TYPES:
        raise unknown("--type", kind, TYPES)
    matching(tokenizer, model.vocab_size, str(path))
    name, dialect, config = dialect_of(model.architecture)
    fields = {
        "general.architecture": name,
        "general.type": "model",
        "general.file_type": TYPES[kind][1],
        "general.quantization_version": QUANTIZATION_VERSION,
        f"{name}.vocab_size": model.vocab_size,
    }
    fields |= {f"{name}.{key}": value for key, value in dialect.settings(config).items()}
    fields |= tokenizer_fields(tokenizer, model.vocab_size)
    tensors = typed(model, kind)
    write_gguf(path, fields, tensors)
    return [theirs for theirs, (_, chosen) in tensors.items() if chosen is Q.F16 and kind != "f16"]


def misread(model: Transformer, copy: Transformer, kind: str) -> str | None:
    """The first tensor that a file of this type gives back otherwise than rounded, None where there is none."""
    again = typed(copy, kind)
    for name, (tensor, chosen) in typed(model, kind).items():
        off = float((tensor - again[name][0]).abs().max())
        allowed = ROUNDING[chosen] and ROUNDING[chosen] * float(tensor.abs().max()) + LEAST_STEP
        if not off <= allowed:
            return name
    return None


def typed(model: Transformer, kind: str) -> dict[str, tuple[Tensor, GGMLQuantizationType]]:
    """The tensors of a file, and what each is written as."""
    _, dialect, config = dialect_of(model.architecture)
    entries = dialect.entries(model.architecture)
    ours = plain_state(model)
    state = {entry.theirs: entry.join([ours[name] for name in entry.ours]) for entry in entries}
    for theirs, (_, heads) in dialect.turned(entries, dialect.settings(config)).items():
        state[theirs] = pair_neighbours(state[theirs], heads)
    return {theirs: (tensor, _type_of(theirs, tensor, kind, OUTPUT in state)) for theirs, tensor in state.items()}


def _type_of(name: str, tensor: Tensor, kind: str, has_output: bool) -> GGMLQuantizationType:
    if tensor.ndim < 2 or name == "position_embd.weight":
        return Q.F32
    chosen, _ = TYPES[kind]
    if chosen in (Q.Q4_0, Q.Q4_1) and name == (OUTPUT if has_output else EMBEDDING):
        chosen = Q.Q8_0
    return chosen if tensor.shape[-1] % GGML_QUANT_SIZES[chosen][0] == 0 else Q.F16
