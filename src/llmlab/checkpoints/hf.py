"""Hugging Face model folders: `config.json` and safetensors, read into a Bundle and written from one.

Which families there are is decided by `families/`: a file there named as a `model_type` knows the config and the
names. Weights in pickles (`pytorch_model.bin`) are refused: loading one can run code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from llmlab.checkpoints.bundle import Bundle, matching, printable, skeleton, stored
from llmlab.checkpoints.native import (
    CONFIG,
    WEIGHTS,
    plain_state,
    read_json,
    read_safetensors,
    read_tokenizer,
)
from llmlab.checkpoints.sentence import write_pooling
from llmlab.errors import InputError
from llmlab.families.mapping import family, family_of, from_hf, settled, to_hf, written
from llmlab.model.transformer import Architecture, Transformer
from llmlab.runtime import atomic_folder, atomic_json, write_safetensors
from llmlab.tokenization.chat import Renderer
from llmlab.tokenization.tokenizer import Tokenizer

INDEX = "model.safetensors.index.json"
GENERATION = "generation_config.json"


def load_hf(folder: Path) -> Bundle:
    """Read a Hugging Face folder; half precision becomes float32 where the model is asked for.

    Errors: InputError for an unknown model_type, a config field that is missing or not built, pickled weights, a
    damaged file, and a missing, unknown or misshapen tensor.
    """
    place = str(folder / CONFIG)
    config = read_json(folder / CONFIG)
    known = family(str(config.get("model_type"))[:80], f"{place}: model_type")
    architecture, vocab_size = _read_config(known, config, place)
    tensors = _read_tensors(folder)
    if (whole := settled(known, config, tensors)) != config:
        architecture, vocab_size = _read_config(known, whole, place)
    model = skeleton(architecture, vocab_size, tensors, place)
    try:
        state = from_hf(known, model, tensors)
    except InputError as error:
        raise InputError(f"{folder}: {printable(error.place)}", error.problem, error.hint) from None
    weights = stored(model, state, str(folder))
    return Bundle(weights, read_tokenizer(folder, vocab_size), architecture, str(folder))


def save_hf(folder: Path, bundle: Bundle) -> None:
    """Write a folder that transformers opens with equal logits. An older folder of that name is replaced.

    Errors: InputError naming the part of the architecture that no family of Hugging Face has.
    """
    family_of(bundle.architecture)  # refused before a file is touched
    with atomic_folder(folder) as work:
        write_hf(work, bundle.model, bundle.tokenizer)
        write_pooling(work, bundle.pooling, bundle.architecture.dim)


def write_hf(folder: Path, model: Transformer, tokenizer: Tokenizer | None) -> None:
    """The files of a Hugging Face folder, into a folder that somebody else makes atomic."""
    matching(tokenizer, model.vocab_size, str(folder))
    known = family_of(model.architecture)
    config = written(known, model.architecture, model.vocab_size)
    # transformers takes LLaMA's own ids for missing ones, so the absence of a token is written out, as null.
    special: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if tokenizer is not None:
        tokenizer.save(folder)
        special = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    atomic_json(folder / CONFIG, special | config)  # a token that the architecture needs is said by the family itself
    if (start := model.architecture.start_id) is not None:
        special["decoder_start_token_id"] = start
    atomic_json(folder / GENERATION, special | {"eos_token_id": _stop_ids(tokenizer)})
    write_safetensors(folder / WEIGHTS, to_hf(known, model.architecture, plain_state(model)), {"format": "pt"})


def _stop_ids(tokenizer: Tokenizer | None) -> list[int] | None:
    """Every id at which generation ends: the end of a turn too, which need not be the end of a text."""
    if tokenizer is None:
        return None
    stops = {tokenizer.eos_id, *(Renderer(tokenizer).stop_ids if tokenizer.chat_template else ())}
    return sorted(id for id in stops if id is not None) or None


def _read_config(known: Any, config: Mapping[str, Any], place: str) -> tuple[Architecture, int]:
    try:
        architecture, vocab_size = known.read_config(config)
    except KeyError as error:
        raise InputError(place, f"lacks the field {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InputError(place, f"gives an impossible architecture: {field} {first['msg']}") from None
    except InputError as error:
        raise InputError(place, f"{error.place}: {error.problem}", error.hint) from None
    except (TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError) as error:
        raise InputError(place, f"has a field of the wrong kind: {printable(str(error))}") from None
    if not isinstance(vocab_size, int) or vocab_size < 1:
        raise InputError(place, f"vocab_size is {str(vocab_size)[:80]!r}, not a count")
    return architecture, vocab_size


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the folder, as stored: one file, or the shards that the index names."""
    if (folder / WEIGHTS).is_file():
        return read_safetensors(folder / WEIGHTS)
    if not (folder / INDEX).is_file():
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        if pickled:
            hint = "convert them to safetensors: a pickle can run code"
            raise InputError(str(folder / pickled[0]), "pickled weights are not loaded", hint)
        raise InputError(str(folder), f"holds no {WEIGHTS}")
    place = str(folder / INDEX)
    shard_of = read_json(folder / INDEX).get("weight_map")
    if not isinstance(shard_of, dict):
        raise InputError(place, "holds no weight_map")
    tensors: dict[str, Tensor] = {}
    for shard in sorted({str(shard) for shard in shard_of.values()}):
        if Path(shard).name != shard:
            raise InputError(place, f"names the shard {shard!r}, outside its folder")
        for name, tensor in read_safetensors(folder / shard).items():
            if shard_of.get(name) != shard:
                raise InputError(place, f"does not put the tensor {name[:200]!r} into {shard}, where it lies")
            tensors[name] = tensor
    if missing := sorted(set(shard_of) - set(tensors)):
        shard = str(shard_of[missing[0]])
        raise InputError(f"{folder}: {printable(missing[0])}", f"is not in {shard!r}, where the index puts it")
    return tensors
