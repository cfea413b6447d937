"""What any format is read into: a model, its tokenizer, its architecture, and where it came from."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import dataclass

import torch
from torch import Tensor

from llmlab.errors import InputError
from llmlab.model.pooling import Pooling
from llmlab.model.transformer import Architecture, Transformer
from llmlab.tokenization.tokenizer import Tokenizer

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class Bundle:
    """A model ready for use, float32 on the CPU, in evaluation mode. `tokenizer` is None where the files had none,
    `pooling` where they do not say how a text becomes one vector."""

    model: Transformer
    tokenizer: Tokenizer | None
    architecture: Architecture
    origin: str
    pooling: Pooling | None = None


def skeleton(architecture: Architecture, vocab_size: int, tensors: Sized, place: str) -> Transformer:
    """The model without memory, for its names and shapes. A config that promises more layers than the file has
    tensors is refused before anything is built."""
    layers = max(0 if architecture.shared else architecture.layers, architecture.encoder_layers)
    if layers > len(tensors):
        raise InputError(place, f"{layers} layers are promised, but there are only {len(tensors)} tensors")
    try:
        with torch.device("meta"):
            return Transformer(architecture, vocab_size)
    except (RuntimeError, OverflowError, TypeError):  # sizes whose product is no 64-bit number
        raise InputError(place, "gives an impossible architecture: its sizes are beyond any memory") from None


def fresh(state: Mapping[str, Tensor], place: str) -> dict[str, Tensor]:
    """Copies in float32 and in memory of torch's own alignment: a mapped file's is arbitrary, and the last bit of a
    matrix product may depend on it."""
    for name, tensor in state.items():
        if tensor.dtype not in FLOATS:
            hint = "float32, bfloat16 and float16 are read"
            raise InputError(f"{place}: {name}", f"has the type {tensor.dtype}", hint)
    return {name: torch.empty(tensor.shape).copy_(tensor) for name, tensor in state.items()}


def printable(name: str) -> str:
    """A name out of a file, fit for one line of an error message."""
    return name if name.isprintable() and len(name) < 200 else repr(name[:200])


def fill(model: Transformer, state: Mapping[str, Tensor], place: str) -> Transformer:
    """Put `state` into a skeleton; a missing, unknown or misshapen tensor is an error naming it."""
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name, shape in expected.items():
        if name not in state:
            raise InputError(f"{place}: {name}", "this tensor is missing")
        if state[name].shape != shape:
            raise InputError(
                f"{place}: {name}", f"has shape {list(state[name].shape)}, where {list(shape)} was expected"
            )
    if left := sorted(set(state) - set(expected)):
        raise InputError(f"{place}: {printable(left[0])}", f"unknown tensor ({len(left)} in all)")
    model.load_state_dict(dict(state), assign=True)
    return model.requires_grad_().eval()


def matching(tokenizer: Tokenizer | None, vocab_size: int, place: str) -> Tokenizer | None:
    """The tokenizer, once each of its ids is known to have a row in the embedding (spare rows are common)."""
    if tokenizer is not None and tokenizer.vocab_size > vocab_size:
        raise InputError(
            place,
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model's embedding {vocab_size} rows",
            "this tokenizer belongs to another model",
        )
    return tokenizer
