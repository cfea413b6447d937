"""What any format is read into: a model, its tokenizer, its architecture, and where it came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from llmlab.errors import InputError
from llmlab.model.groups import Weight, dense
from llmlab.model.pooling import Pooling
from llmlab.model.rescaling import Rescaling, reread
from llmlab.model.transformer import Architecture, Transformer
from llmlab.tokenization.tokenizer import Tokenizer

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Unmade(Protocol):
    """What a model is made of once somebody asks for it."""

    def transformer(self) -> Transformer: ...


@dataclass(frozen=True)
class Bundle:
    """A model ready for use, float32 on the CPU, in evaluation mode. `tokenizer` is None where the files had none,
    `pooling` where they do not say how a text becomes one vector. `made` is the model, or what `model` makes it of
    when it is first asked for: until then it takes neither time nor memory."""

    made: Transformer | Unmade
    tokenizer: Tokenizer | None
    architecture: Architecture
    origin: str
    pooling: Pooling | None = None

    @property
    def model(self) -> Transformer:
        if not isinstance(self.made, Transformer):
            object.__setattr__(self, "made", self.made.transformer())  # a copy with another origin shares it
        assert isinstance(self.made, Transformer)
        return self.made


def rescaled(bundle: Bundle, how: Rescaling) -> Bundle:
    """The same weights, read with rescaled rotary angles and a longer context; the given bundle stays as it is.

    Errors: InputError for a model without rotary positions, and for one that is rescaled already.
    """
    architecture, made = how.architecture(bundle.architecture), bundle.made
    if isinstance(made, Stored):
        return replace(
            bundle, made=replace(made, skeleton=reread(made.skeleton, architecture)), architecture=architecture
        )
    return replace(bundle, made=reread(bundle.model, architecture), architecture=architecture)


@dataclass(frozen=True)
class Stored:
    """Weights that lie in files, known to fit their architecture. `read` answers one by our name, as it is stored: it
    may be a view of the file, of any float type, or groups of quantised weights."""

    skeleton: Transformer
    read: Callable[[str], Weight]
    place: str

    @staticmethod
    def of(model: Transformer) -> Stored:
        """A model's own weights, in memory."""
        return Stored(model, model.state_dict().__getitem__, "model")

    def transformer(self) -> Transformer:
        """A model of its own, float32."""
        model = skeleton(self.skeleton.architecture, self.skeleton.vocab_size, self.skeleton.state_dict(), self.place)
        return fill(model, {name: _own(self.read(name)) for name in model.state_dict()}, self.place)


def stored(model: Transformer, state: Mapping[str, Tensor], place: str) -> Stored:
    """Tensors that were read, once they are known to fit the skeleton.

    Errors: InputError for a tensor that is missing, unknown, misshapen or not of floats.
    """
    for name, tensor in state.items():
        if tensor.dtype not in FLOATS:
            hint = "float32, bfloat16 and float16 are read"
            raise InputError(f"{place}: {name}", f"has the type {tensor.dtype}", hint)
    fit(model, {name: tensor.shape for name, tensor in state.items()}, place)
    return Stored(model, state.__getitem__, place)


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


def _own(weight: Weight) -> Tensor:
    """A copy in float32 and in memory of torch's own alignment: a mapped file's is arbitrary, and the last bit of a
    matrix product may depend on it."""
    return torch.empty(weight.shape).copy_(weight) if isinstance(weight, Tensor) else dense(weight)


def printable(name: str) -> str:
    """A name out of a file, fit for one line of an error message."""
    return name if name.isprintable() and len(name) < 200 else repr(name[:200])


def fit(model: Transformer, shapes: Mapping[str, torch.Size], place: str) -> None:
    """Hold tensors against the model; a missing, unknown or misshapen one is an error naming it."""
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name, shape in expected.items():
        if name not in shapes:
            raise InputError(f"{place}: {name}", "this tensor is missing")
        if shapes[name] != shape:
            raise InputError(f"{place}: {name}", f"has shape {list(shapes[name])}, where {list(shape)} was expected")
    if left := sorted(set(shapes) - set(expected)):
        raise InputError(f"{place}: {printable(left[0])}", f"unknown tensor ({len(left)} in all)")


def fill(model: Transformer, state: Mapping[str, Tensor], place: str) -> Transformer:
    """Put `state` into a skeleton that it fits."""
    fit(model, {name: tensor.shape for name, tensor in state.items()}, place)
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
