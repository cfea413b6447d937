"""Quantised weights, by rounding to nearest: made, saved, opened again, and what they cost in bits per byte.

int8 halves bf16 for next to nothing; int4 in groups loses a little, more on small models than on large ones (Dettmers &
Zettlemoyer 2022, arXiv 2212.09720). Norms and biases stay as they are. A tied head is quantised as a matrix of its own,
while the embedding it was tied to becomes int8 rows or stays float32.
"""

import copy
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from llmlab.checkpoints.bundle import Bundle, Stored, skeleton
from llmlab.checkpoints.native import (
    CONFIG,
    WEIGHTS,
    plain_state,
    read_json,
    read_safetensors,
    read_tokenizer,
)
from llmlab.checkpoints.where import QUANTIZED
from llmlab.data.batch import Ids
from llmlab.data.shards import TokenShards
from llmlab.errors import InputError, Stopped
from llmlab.evaluation.perplexity import Scores, held_out_documents, score_documents
from llmlab.evaluation.statistics import paired_bootstrap, verdict
from llmlab.inference.engine import generate
from llmlab.inference.fast import unfit
from llmlab.inference.sampling import Sampling
from llmlab.model.groups import Weight
from llmlab.model.linear import Linear
from llmlab.model.quantized import Int4Linear, Int8Embedding, Int8Linear, QuantizedLinear, quantize_rows, use_kernels
from llmlab.model.transformer import Architecture, Transformer
from llmlab.recipe import KINDS, Section, parse
from llmlab.runtime import atomic_folder, atomic_json, derive, write_safetensors
from llmlab.stages import Figures, Session
from llmlab.tokenization.tokenizer import Tokenizer

VERSION = 1
_TRIALS = 3  # of the speed figure; their median counts


class Int8(Section):
    """8 bits a weight and one scale an output row, symmetric (Dettmers et al. 2022, arXiv 2208.07339)."""

    kind: Literal["int8"] = "int8"

    def build(self, weight: Tensor, bias: Tensor | None, name: str) -> QuantizedLinear:
        return Int8Linear.of(weight, bias, name)


class Int4(Section):
    """4 bits a weight, a scale and a minimum for each group of columns (llama.cpp's Q4_1)."""

    kind: Literal["int4"] = "int4"
    group: Literal[32, 64, 128, 256] = Field(32, description="columns that share a scale and a minimum")

    def build(self, weight: Tensor, bias: Tensor | None, name: str) -> QuantizedLinear:
        return Int4Linear.of(weight, self.group, bias, name)


Kind = Annotated[Int8 | Int4, *KINDS]


class Builds(Protocol):
    """What a model needs of a kind of linear: the recipe's kinds have it."""

    def build(self, weight: Tensor, bias: Tensor | None, name: str) -> nn.Module: ...


class Quantize(Section):
    """Which quantised models are made, and how they are measured."""

    kinds: tuple[Kind, ...] = Field((Int8(), Int4()), min_length=1, description="one model folder each")
    embedding: Literal["int8", "keep"] = Field("int8", description="the embedding: int8 rows, or float32 as it was")
    documents: int | None = Field(None, gt=0, description="held-out documents to measure on; null: all")
    new_tokens: int = Field(64, gt=1, description="tokens to decode for the speed figure")


# ---------------------------------------------------------------- making


def quantize_model(model: Transformer, kind: Builds, embedding: Literal["int8", "keep"] = "int8") -> Transformer:
    """A quantised copy; `model` stays as it is. Every linear is replaced, the head included, also where it was tied.

    Errors: InputError naming the first weight whose shape or values the kind cannot hold.
    """
    made = _copied(model)
    for path, linear in _linears(model):
        _put(made, path, kind.build(linear.weight, linear.bias, path))
    table = model.embedding.weight
    if embedding == "int8":
        made.embedding = Int8Embedding(*quantize_rows(table, "embedding"))  # type: ignore[assignment]
    if model.head is None:
        if isinstance(kind, Int8) and isinstance(made.embedding, Int8Embedding):
            made.head = Int8Linear(made.embedding.codes, made.embedding.scale)  # type: ignore[assignment]
        else:
            made.head = kind.build(table, None, "head")  # type: ignore[assignment]
    return made.requires_grad_(False).eval()


def _copied(model: Transformer) -> Transformer:
    """A copy without the memory of the linears, which are about to be replaced."""
    linears = {id(linear.weight): linear.weight for _, linear in _linears(model)}
    return copy.deepcopy(model, dict(linears))


def _linears(model: nn.Module) -> Iterator[tuple[str, Linear]]:
    for path, module in model.named_modules():
        if isinstance(module, Linear):
            yield path, module


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def largest_error(model: Transformer, quantized: Transformer) -> float:
    """Largest absolute difference of any weight from what it was quantised to."""
    there = dict(quantized.named_modules())
    pairs = [(linear.weight, there[path]) for path, linear in _linears(model)]
    pairs.append((model.embedding.weight, there["embedding"]))
    if model.head is None:
        pairs.append((model.embedding.weight, there["head"]))
    return max(float((weight.detach() - module.weight).abs().max()) for weight, module in pairs)


# ---------------------------------------------------------------- files


def save_quantized(folder: Path, model: Transformer, tokenizer: Tokenizer | None, kind: Int8 | Int4) -> None:
    """Write codes and scales, the config that says so, and the tokenizer; whole or not at all. A head that shares its
    codes with the embedding is stored once."""
    state = model.state_dict()
    if _shared(model):
        state = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    config = {
        "format": QUANTIZED,
        "version": VERSION,
        "vocab_size": model.vocab_size,
        "architecture": model.architecture.model_dump(mode="json"),
        "quantization": kind.model_dump(mode="json"),
        "embedding": "int8" if isinstance(model.embedding, Int8Embedding) else "keep",
    }
    with atomic_folder(folder) as work:
        atomic_json(work / CONFIG, config)
        write_safetensors(work / WEIGHTS, state)
        if tokenizer is not None:
            tokenizer.save(work)


def _shared(model: Transformer) -> bool:
    head, table = model.head, model.embedding
    return isinstance(head, Int8Linear) and isinstance(table, Int8Embedding) and head.codes is table.codes


def is_quantized(folder: Path) -> bool:
    """Whether this is a folder that `save_quantized` wrote."""
    return (folder / CONFIG).is_file() and read_json(folder / CONFIG).get("format") == QUANTIZED


def load_quantized(folder: Path) -> Bundle:
    """Read what `save_quantized` wrote; the plain path multiplies until `use_kernels(bundle.model)` is called.

    Errors: InputError for another format, and for a missing, unknown or misshapen tensor.
    """
    config, place = read_json(folder / CONFIG), str(folder / CONFIG)
    if config.get("format") != QUANTIZED or config.get("version") != VERSION:
        found = f"{config.get('format')!r} version {config.get('version')!r}"
        raise InputError(place, f"is {found}", f"this llmlab reads {QUANTIZED!r} version {VERSION}")
    settings = parse(_Saved, {name: config.get(name) for name in _Saved.model_fields}, place)
    tensors = read_safetensors(folder / WEIGHTS)
    state = {name: torch.empty_like(tensor).copy_(tensor) for name, tensor in tensors.items()}
    model = _skeleton(settings, state, str(folder / WEIGHTS))
    expected = model.state_dict()
    for name in sorted(expected.keys() | state.keys()):
        if name not in state or name not in expected:
            raise InputError(f"{folder / WEIGHTS}: {name}", "missing tensor" if name in expected else "unknown tensor")
        wanted, given = expected[name], state[name]
        if (wanted.shape, wanted.dtype) != (given.shape, given.dtype):
            problem = f"is {given.dtype} {list(given.shape)}, where {wanted.dtype} {list(wanted.shape)} was expected"
            raise InputError(f"{folder / WEIGHTS}: {name}", problem)
    model.load_state_dict(state, assign=True)
    tokenizer = read_tokenizer(folder, model.vocab_size)
    return Bundle(model.requires_grad_(False).eval(), tokenizer, settings.architecture, str(folder))


def for_native(model: Transformer) -> Stored | str:
    """The weights of a quantised model as the native step takes them, exactly, or in a few words why it cannot. The
    head stands by itself there, and the int8 rows of an embedding are told as floats."""
    architecture = model.architecture.model_copy(update={"tied": False})
    plain = skeleton(architecture, model.vocab_size, model.state_dict(), "model")
    if (reason := unfit(plain)) is not None:
        return reason
    found: dict[str, Weight] = dict(model.state_dict())
    for path, module in model.named_modules():
        if isinstance(module, QuantizedLinear):
            if isinstance(groups := module.groups(), str):
                return groups
            found[f"{path}.weight"] = groups
        elif isinstance(module, Int8Embedding):
            found[f"{path}.weight"] = module.weight
    return Stored(plain, found.__getitem__, "model")


class _Saved(Section):
    vocab_size: int = Field(gt=0)
    architecture: Architecture
    quantization: Kind
    embedding: Literal["int8", "keep"]


def _skeleton(settings: _Saved, state: dict[str, Tensor], place: str) -> Transformer:
    """The quantised module tree without memory, for names, shapes and dtypes. A head stored once, as the embedding, is
    put into `state`."""
    kind = settings.quantization
    model = skeleton(settings.architecture, settings.vocab_size, state, place)
    rows, width = model.embedding.weight.shape
    for path, linear in list(_linears(model)):
        _put(model, path, _empty(kind, linear.out_features, linear.in_features, linear.bias, f"{place}: {path}"))
    if model.head is None:
        model.head = _empty(kind, rows, width, None, f"{place}: head")  # type: ignore[assignment]
        if isinstance(kind, Int8) and settings.embedding == "int8":
            state |= {
                f"head.{part}": state[name] for part in ("codes", "scale") if (name := f"embedding.{part}") in state
            }
    if settings.embedding == "int8":
        codes = torch.empty(rows, width, dtype=torch.int8, device="meta")
        model.embedding = Int8Embedding(codes, torch.empty(rows, device="meta"))  # type: ignore[assignment]
    return model


def _empty(kind: Int8 | Int4, rows: int, columns: int, bias: Tensor | None, name: str) -> QuantizedLinear:
    """A quantised linear on the meta device."""
    with torch.device("meta"):
        if isinstance(kind, Int8):
            return Int8Linear(torch.empty(rows, columns, dtype=torch.int8), torch.empty(rows), bias)
        if columns % kind.group:
            raise InputError(name, f"{columns} columns are no whole number of groups of {kind.group}")
        scale = torch.empty(rows, columns // kind.group, dtype=torch.float16)
        return Int4Linear(torch.empty(rows, columns // 2, dtype=torch.uint8), scale, scale.clone(), bias)


# ---------------------------------------------------------------- the stage


def quantize(section: Quantize, base: Bundle, held_out: TokenShards | None, out: Path, session: Session) -> Figures:
    """Write `out/<kind>/` for each kind and measure it beside the model it came from.

    Figures: `weights`, one row a kind with the float32 model first: bytes of its weights, tokens a second of greedy
    decoding (packed kernels where they passed their check), largest error of a weight, and, with held-out text, bits
    per byte by the exact path with the paired difference to float32.
    """
    plain_state(base.model)  # what keeps an adapter is no weights alone
    documents = [] if held_out is None else held_out_documents(held_out, section.documents)
    tokenizer = base.tokenizer
    measured = _Measured(base, documents, section.new_tokens, session)
    rows = [measured.row("fp32", base.model, sum(p.numel() * p.element_size() for p in base.model.parameters()))]
    for kind in section.kinds:
        if session.stop.requested:
            raise Stopped("stopped between two kinds of weights; quantize starts anew")
        model = quantize_model(base.model, kind, section.embedding)
        folder = out / name_of(kind)
        save_quantized(folder, model, tokenizer, kind)
        error = largest_error(base.model, model)
        rows.append(measured.row(name_of(kind), model, (folder / WEIGHTS).stat().st_size) | {"largest_error": error})
    return {"weights": rows, "documents": len(documents)}


def name_of(kind: Int8 | Int4) -> str:
    """The folder of a kind: `int8`, `int4`, and `int4-64` for other groups than the default."""
    if isinstance(kind, Int8) or kind.group == Int4.model_fields["group"].default:
        return kind.kind
    return f"{kind.kind}-{kind.group}"


class _Measured:
    """Measures models on the same text and the same prompt."""

    def __init__(self, base: Bundle, documents: Sequence[Ids], new_tokens: int, session: Session) -> None:
        self.tokenizer, self.documents, self.session = base.tokenizer, documents, session
        room = max(1, base.architecture.context - new_tokens)
        first = [int(i) for i in documents[0][:64]] if documents else []
        self.prompt = (first or [0])[:room]
        self.sampling = Sampling(temperature=0, max_new_tokens=new_tokens)
        self.exact: Scores | None = None

    def row(self, name: str, model: Transformer, size: int) -> dict[str, Any]:
        row: dict[str, Any] = {"kind": name, "bytes": size}
        if self.tokenizer is not None and self.documents:
            scores = score_documents(model, self.tokenizer, self.documents)
            found = scores.estimate(derive(self.session.seed, "quantize", "text"))
            row |= {"held_out_bits_per_byte": found.value, "interval": found.interval}
            if self.exact is None:
                self.exact = scores
            else:
                row |= self._beside(scores)
        reasons = use_kernels(model)
        row["tokens_per_second"] = statistics.median(self._rate(model) for _ in range(_TRIALS))
        use_kernels(model, on=False)
        return row | ({"plain": reasons} if reasons else {})

    def _beside(self, scores: Scores) -> dict[str, Any]:
        assert self.exact is not None
        seed = derive(self.session.seed, "quantize", "difference")
        difference = paired_bootstrap(scores.nats / math.log(2), self.exact.nats / math.log(2), seed, scores.bytes)
        told = verdict(difference, better="lower")
        return {"difference": difference.value, "difference_interval": difference.interval, "verdict": told}

    def _rate(self, model: Transformer) -> float:
        """Tokens a second of decoding alone: from the first new token to the last."""
        times: list[float] = []

        def note(row: int, token: int) -> bool:
            times.append(time.perf_counter())
            return False

        generate(model, [self.prompt], self.sampling, (), [0], on_token=note)
        return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0
