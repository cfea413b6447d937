"""llmlab's own model folder: `config.json`, `model.safetensors`, and the tokenizer's files.

Equal weights give equal bytes: names sorted, no times, no metadata. A tied head is stored once, as the embedding.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from llmlab.checkpoints.bundle import Bundle, matching, printable, skeleton, stored
from llmlab.errors import InputError
from llmlab.model.transformer import Architecture, Transformer
from llmlab.recipe import parse
from llmlab.runtime import atomic_folder, atomic_json, write_safetensors
from llmlab.tokenization.folder import FILES as TOKENIZER_FILES
from llmlab.tokenization.tokenizer import Tokenizer

FORMAT = "llmlab"
VERSION = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"
MAX_CONFIG = 1 << 24


def save_model(folder: Path, model: Transformer, tokenizer: Tokenizer | None) -> None:
    """Write a model folder, whole or not at all. An older folder of that name is replaced."""
    matching(tokenizer, model.vocab_size, str(folder))
    with atomic_folder(folder) as work:
        write_model(work, model, tokenizer)


def write_model(folder: Path, model: Transformer, tokenizer: Tokenizer | None) -> None:
    """The files of a model folder, into a folder that somebody else makes atomic."""
    config = {
        "format": FORMAT,
        "version": VERSION,
        "vocab_size": model.vocab_size,
        "architecture": model.architecture.model_dump(mode="json"),
    }
    atomic_json(folder / CONFIG, config)
    write_safetensors(folder / WEIGHTS, plain_state(model))
    if tokenizer is not None:
        tokenizer.save(folder)


def load_model(folder: Path) -> Bundle:
    """Read a folder that `save_model` wrote.

    Errors: InputError for a config of another format or version, a truncated file, and a missing, unknown or misshapen
    tensor.
    """
    config = read_json(folder / CONFIG)
    place = str(folder / CONFIG)
    if config.get("format") != FORMAT:
        raise InputError(place, f"the format is {str(config.get('format'))[:80]!r}, not {FORMAT!r}")
    if config.get("version") != VERSION:
        raise InputError(
            place, f"version {str(config.get('version'))[:80]!r} is not known", f"this llmlab reads {VERSION}"
        )
    vocab_size = config.get("vocab_size")
    if not isinstance(vocab_size, int) or vocab_size < 1:
        raise InputError(place, f"vocab_size is {str(vocab_size)[:80]!r}, not a count")
    architecture = parse(Architecture, config.get("architecture"), f"{place}: architecture")
    tensors = read_safetensors(folder / WEIGHTS)
    model = skeleton(architecture, vocab_size, tensors, place)
    weights = stored(model, tensors, str(folder / WEIGHTS))
    return Bundle(weights, read_tokenizer(folder, vocab_size), architecture, str(folder))


def plain_state(model: Transformer) -> dict[str, Tensor]:
    """The weights of a model that nothing is put on; adapters are merged and quantised linears undone before this.

    Errors: InputError for a model that keeps what weights alone cannot say.
    """
    state = model.state_dict()
    if kept := [name for name in state if ".part." in name or name.startswith("beginning.")]:
        problem = f"keeps an adapter that is no weights ({kept[0]})"
        raise InputError(
            "model", problem, "chat, generate and evaluate take it as it is; train an adapter on top of it"
        )
    plain = skeleton(model.architecture, model.vocab_size, state, "model").state_dict()
    if {name: tensor.shape for name, tensor in state.items()} != {name: tensor.shape for name, tensor in plain.items()}:
        odd = sorted(set(state) ^ set(plain))
        raise ValueError(f"not a plain model: {odd[:3]} do not belong to its architecture")
    return state


def read_tokenizer(folder: Path, vocab_size: int) -> Tokenizer | None:
    """The tokenizer in a model folder, None where there is none."""
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    return matching(Tokenizer.load(folder), vocab_size, str(folder))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds one object."""
    value = read_value(path)
    if not isinstance(value, dict):
        raise InputError(str(path), "holds no JSON object")
    return value


def read_value(path: Path) -> Any:
    """A JSON file."""
    try:
        if path.stat().st_size > MAX_CONFIG:
            raise InputError(str(path), f"larger than {MAX_CONFIG} bytes: not a config")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(str(path), f"is not JSON: {error}") from None


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file, as stored, through a memory map: no copy is made here."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror or error}") from None
    except SafetensorError as error:
        raise InputError(str(path), f"truncated or damaged safetensors: {printable(str(error))}") from None
