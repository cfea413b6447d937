"""The same matrices in several precisions: how fast layers and a whole model go, and what it costs a model in loss.

    W8A16, W4A16   weights alone in integers, PyTorch's packed kernels on bf16 activations
    W8A8           weights and activations in integers; LLM.int8() the same with outliers apart (`int8_products.py`)

In fp16 and bf16 the whole model is cast; with integers everything but the matrices is bf16, so that they differ from
bf16 in the matrices alone. What runs eagerly pays PyTorch's price a call; the native step fuses it away.

B texts, T tokens, M rows of a product, K inputs.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from llmlab.compression.int8_products import OutlierLinear, W8A8Linear
from llmlab.compression.quantize import Builds, Int4, Int8, quantize_model
from llmlab.handbook import roofline
from llmlab.handbook.fitting import fit
from llmlab.handbook.little_model import VOCABULARY, book, nats, passages
from llmlab.handbook.speeds import token_times
from llmlab.inference import native
from llmlab.inference.fast import FastModel
from llmlab.inference.packing import KINDS
from llmlab.inference.pages import PAGE
from llmlab.inference.stepper import Piece
from llmlab.language_model import load
from llmlab.model.attention import MultiHead
from llmlab.model.block import Block
from llmlab.model.linear import Linear
from llmlab.model.quantized import use_kernels
from llmlab.model.transformer import Architecture, Transformer
from llmlab.runtime import generator, instruction_sets

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
METHODS = (*DTYPES, "W8A16", "W8A8", "LLM.int8()", "W4A16")
INTEGER_PRODUCTS = ("W8A8", "LLM.int8()")
PHASES = ("prefill", "decode")
SHAPE = (1536, 576)  # of the layers that are timed alone: SmolLM2's gate and up
FRESH, FEW = 96, 6  # such layers in a row, so that decoding finds none of them in a cache; and enough for a long prompt
CONTEXT = 512  # of the native step's pages


class _Products:
    """A kind of linear whose products are of integers, for `quantize_model`."""

    def __init__(self, linear: type[W8A8Linear]) -> None:
        self.linear = linear

    def build(self, weight: Tensor, bias: Tensor | None, name: str) -> nn.Module:
        return self.linear(weight, bias, name)


KIND: Mapping[str, Builds] = {
    "W8A16": Int8(),
    "W8A8": _Products(W8A8Linear),
    "LLM.int8()": _Products(OutlierLinear),
    "W4A16": Int4(),
}


def lacking(method: str) -> str | None:
    """Why a method is not timed on this CPU, in a few words."""
    if method in INTEGER_PRODUCTS and not instruction_sets() & {"avx512_vnni", "avx_vnni", "amx_int8"}:
        return "no integer dot products (VNNI) on this CPU"
    return None


def changed(model: Transformer, method: str) -> Transformer:
    """A copy of a float32 model that multiplies by a method. Everything around integer matrices is bf16."""
    if method in DTYPES:
        return copy.deepcopy(model).to(DTYPES[method])
    made = quantize_model(model, KIND[method], "keep")
    for module in made.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(parameter.to(torch.bfloat16), requires_grad=False))
    use_kernels(made)
    return made


def size(model: Transformer) -> int:
    """Bytes of what a file of the model would hold, a shared matrix once."""
    parts = {tensor.data_ptr(): tensor for tensor in model.state_dict().values()}
    return sum(tensor.nbytes for tensor in parts.values())


# ---------------------------------------------------------------- speed


class _Layer(NamedTuple):
    dtype: torch.dtype
    multiply: Callable[[Tensor], Tensor]


def _layer(weight_NK: Tensor, method: str) -> _Layer:
    if method in DTYPES:
        plain = Linear(SHAPE[1], SHAPE[0], bias=False)
        plain.weight = nn.Parameter(weight_NK, requires_grad=False)
        return _Layer(DTYPES[method], plain.to(DTYPES[method]))
    made = KIND[method].build(weight_NK, None, "weight")
    use_kernels(made)
    return _Layer(torch.bfloat16, made)


def in_turn(runs: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median of each run's seconds. All take turns, back and forth, so that a busy moment meets them all."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(-1, rounds):
        for name in reversed(runs) if turn % 2 else runs:
            found = runs[name]()
            if turn >= 0:  # the first turn warms up
                seconds[name].append(found)
    return {name: statistics.median(several) for name, several in seconds.items()}


def _timed(layers: Sequence[_Layer], x_MK: Tensor) -> Callable[[], float]:
    x_MK = x_MK.to(layers[0].dtype)

    def run() -> float:
        begin = time.perf_counter()
        for layer in layers:
            layer.multiply(x_MK)
        return (time.perf_counter() - begin) / len(layers)

    return run


def layers_timed(settings: Mapping[str, Any], seed: int) -> dict[str, float | str]:
    """`layer prefill fp32` and the like: microseconds a layer."""
    draws = generator(seed, "handbook", "precisions", "layers")
    weights = torch.randn(FRESH, *SHAPE, generator=draws) / SHAPE[1] ** 0.5
    x_MK = torch.randn(settings["rows"] * settings["prompt"], SHAPE[1], generator=draws)
    rows = {"prefill": (FEW, len(x_MK)), "decode": (FRESH, settings["rows"])}
    told: dict[str, float | str] = {}
    stacks = {m: [_layer(weight, m) for weight in weights] for m in METHODS if lacking(m) is None}
    for phase, (count, some) in rows.items():
        runs = {m: _timed(stack[:count], x_MK[:some]) for m, stack in stacks.items()}
        found = in_turn(runs, settings["rounds"])
        told |= {f"layer {phase} {m}": 1e6 * found[m] if m in found else str(lacking(m)) for m in METHODS}
    return told


def _eager(model: Transformer, prompts: list[list[int]], new: int) -> dict[str, float]:
    """Seconds until the first new token, and from each to the next, of all texts together."""
    times = token_times(model, prompts, new + 1)
    return {"prefill": times[0], "decode": (times[-1] - times[0]) / new}


def _native(fast: FastModel, prompts: list[list[int]], new: int) -> dict[str, float]:
    """The same of the native step, which is called as the engine calls it."""
    length, pages = len(prompts[0]), -(-CONTEXT // PAGE)
    tables = [range(at * pages, (at + 1) * pages) for at in range(len(prompts))]
    begin = time.perf_counter()
    asked = range(length - 1, length * len(prompts), length)
    logits_BV = fast.step([Piece(p, 0, table) for p, table in zip(prompts, tables, strict=True)], asked)
    middle = time.perf_counter()
    for place in range(length, length + new):
        ids = logits_BV.argmax(-1).tolist()
        pieces = [Piece([id], place, table) for id, table in zip(ids, tables, strict=True)]
        logits_BV = fast.step(pieces, range(len(ids)))
    return {"prefill": middle - begin, "decode": (time.perf_counter() - middle) / new}


@torch.no_grad()
def model_timed(model: Transformer, settings: Mapping[str, Any], seed: int) -> dict[str, float | str]:
    """`prefill fp32`, `decode fp32` (milliseconds a step of all texts) and the like; `native ...` of the fused step.
    Also the megabytes of each, and how many columns of its inputs an LLM.int8() matrix takes out."""
    draws = generator(seed, "handbook", "precisions", "prompts")
    prompt_BT = torch.randint(model.vocab_size, (settings["rows"], settings["prompt"]), generator=draws)
    prompts, told = prompt_BT.tolist(), dict[str, float | str]()
    made = {m: changed(model, m) for m in METHODS if lacking(m) is None}
    told |= {f"megabytes {m}": size(made[m]) / 1e6 if m in made else str(lacking(m)) for m in METHODS}
    told["outlier columns"] = _outliers(made["LLM.int8()"], prompts) if "LLM.int8()" in made else str(lacking("W8A8"))
    reason = native.available()
    fast = {} if reason else {k: FastModel(model, k, len(prompts) * -(-CONTEXT // PAGE)) for k in KINDS}
    found: dict[str, list[float]] = {}
    runs: list[tuple[str, Transformer | FastModel]] = [
        *made.items(),
        *((f"native {k}", one) for k, one in fast.items()),
    ]
    for turn in range(-1, settings["rounds"]):
        for name, one in reversed(runs) if turn % 2 else runs:
            new = settings["new"]
            timed = _native(one, prompts, new) if isinstance(one, FastModel) else _eager(one, prompts, new)
            for phase, seconds in timed.items():
                if turn >= 0:  # the first turn warms up
                    found.setdefault(f"{phase} {name}", []).append(1e3 * seconds)
    medians = {name: statistics.median(several) for name, several in found.items()}
    for phase in PHASES:
        told |= {f"{phase} {m}": medians.get(f"{phase} {m}", str(lacking(m))) for m in METHODS}
        told |= {f"{phase} native {kind}": medians.get(f"{phase} native {kind}", str(reason)) for kind in KINDS}
    return told


def _outliers(model: Transformer, prompts: list[list[int]]) -> float:
    """The mean over matrices of columns that hold an outlier while the prompts are read."""
    counts: list[int] = []

    def count(module: OutlierLinear, given: tuple[Tensor, ...], out: Tensor) -> None:
        counts.append(int((given[0].flatten(0, -2).abs().amax(0) > module.threshold).sum()))

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, OutlierLinear)]
    model(torch.tensor(prompts))
    for hook in hooks:
        hook.remove()
    return statistics.mean(counts)


def speed(settings: Mapping[str, Any], seed: int) -> dict[str, float | str]:
    """An arm of the race of speeds. SmolLM2 must have been pulled."""
    model = load("smollm2").model.requires_grad_(False)
    ceilings = {"bandwidth": roofline.bandwidth() / 1e9}  # gigabytes a second
    return {**layers_timed(settings, seed), **model_timed(model, settings, seed), **ceilings}


# ---------------------------------------------------------------- loss

LITTLE = Architecture(layers=4, dim=128, context=64, attention=MultiHead(heads=4))
TESTED = 256  # rows of held-out text
PLANTED, TIMES = 4, 20.0  # channels that are made outliers in front of each pair of parts, and by how much


def trained(settings: Mapping[str, Any], seed: int) -> Transformer:
    """A small llama of the bundled book, one token a byte, trained in float32."""
    model = LITTLE.build(VOCABULARY, seed)
    text, source = book()[0], generator(seed, "handbook", "precisions", "text")

    def loss(step: int) -> Tensor:
        return nats(model, passages(text, settings["text_rows"], LITTLE.context, source))

    fit(model, loss, settings["steps"], settings["rate"], settings["adamw_rate"])
    return model.requires_grad_(False)


def planted(model: Transformer, seed: int) -> Transformer:
    """The same function with outliers, as large models have them of themselves: in front of attention and feed-forward
    a few channels are `TIMES` as large and the weights that read them as small."""
    made = copy.deepcopy(model)
    source = generator(seed, "handbook", "precisions", "planted")
    for block in made.blocks:
        assert isinstance(block, Block)
        for norm, part, readers in (
            (block.attention_norm, block.attention, ("query", "key", "value")),
            (block.feedforward_norm, block.feedforward, ("gate", "up")),
        ):
            channels = torch.randperm(LITTLE.dim, generator=source)[:PLANTED]
            norm.get_parameter("weight")[channels] *= TIMES
            for reader in readers:
                part.get_parameter(f"{reader}.weight")[:, channels] /= TIMES
    return made


@torch.no_grad()
def losses(settings: Mapping[str, Any], seed: int) -> dict[str, float]:
    """Held-out bits a byte of a model trained here, by every method: as it is, and with outliers planted."""
    with torch.enable_grad():
        model = trained(settings, seed)
    row_BT = passages(book()[1], TESTED, LITTLE.context, generator(seed, "handbook", "precisions", "test"))
    told = {}
    for name, one in (("", model), ("planted ", planted(model, seed))):
        for method in METHODS:
            loss = nats(_Float(changed(one, method)), row_BT)
            told[f"{name}{method}"] = float(loss) / float(torch.log(torch.tensor(2.0)))
    return told


class _Float:
    """Logits in float32, whatever the model computes in."""

    def __init__(self, model: Transformer) -> None:
        self.model = model

    def __call__(self, ids_BT: Tensor) -> Tensor:
        logits: Tensor = self.model(ids_BT)
        return logits.float()
