"""Measures this machine for the planner, in about 20 seconds: a process that has the imports of a run prints JSON.

Reference steps of three widths run under a mode that times every operation by itself; their whole steps, untimed, say
what lies between operations. Products get a grid of shapes besides, since their rate depends on three sizes.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from llmlab.data.batch import Batch
from llmlab.data.text import Text, prepare_text, read_texts
from llmlab.data.tokens import encode
from llmlab.inference.engine import generate
from llmlab.inference.sampling import Sampling
from llmlab.model.fused import fused
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture
from llmlab.objectives.language import NextToken
from llmlab.planner.machine import Machine, Moved, Product, this_machine
from llmlab.planner.work import OWN, Work, work_of
from llmlab.runtime import (
    KERNELS_KEPT,
    PeakMemory,
    atomic_bytes,
    generator,
    give_back,
    keep_few_kernels,
    keep_freed_memory,
    make_deterministic,
    resident_bytes,
)
from llmlab.stages import Session
from llmlab.tokenization.train import BPE, train_tokenizer
from llmlab.training.adamw import AdamW
from llmlab.training.muon import Muon
from llmlab.training.parallel.ranks import Alone
from llmlab.training.step import Gradients

# (dim, heads, tokens a row, rows, vocabulary, norm, feed-forward)
REFERENCES = (
    (64, 4, 64, 4, 512, "rmsnorm", "swiglu"),
    (256, 4, 256, 4, 2048, "layernorm", "gelu"),
    (256, 4, 256, 8, 2048, "rmsnorm", "swiglu"),
    (576, 8, 512, 2, 8192, "rmsnorm", "swiglu"),
)
GRID = {"rows": (1, 16, 128, 1024), "inner": (64, 256, 1024), "columns": (64, 256, 1024, 16384)}
STEP_SHAPES = 20  # of bf16 products in a reference step
LARGEST = 8e9  # multiply-adds of one timed product, twice


class Timed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operation with its seconds."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.works: list[tuple[Work, float]] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """As of `census.Watch`."""
        return False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace not in OWN or function.is_view:
            return function(*args, **(kwargs or {}))
        begin = time.perf_counter()
        out = function(*args, **(kwargs or {}))
        seconds = time.perf_counter() - begin
        self.works.append((work_of(function, args, out), seconds))
        return out


def measured() -> dict[str, Any]:
    """All figures of `Machine` but the key."""
    make_deterministic()
    keep_freed_memory()
    keep_few_kernels()
    figures: dict[str, Any] = memory(shapes=60, all_shapes=4 * KERNELS_KEPT)
    timed, rest = references()
    products, moved = tabled([*timed, *grid()])
    figures |= {"products": products, "moved": moved, "beside_seconds": 0.0}
    figures |= {"token_seconds": 0.0} | text_rates() | disk_rates()
    machine = Machine(key=this_machine(), **figures)
    figures["beside_seconds"] = beside(machine, rest)
    figures["token_seconds"] = token_seconds(machine.model_copy(update={"beside_seconds": figures["beside_seconds"]}))
    return figures


# ---------------------------------------------------------------- reference steps


def reference(
    dim: int,
    heads: int,
    length: int,
    rows: int,
    vocabulary: int,
    norm: str,
    feedforward: str,
    dtype: torch.dtype | None,
    optimizer: Any,
) -> Callable[[], None]:
    """One whole training step of a model of two layers, to be called again and again."""
    a = Architecture.model_validate(
        {"layers": 2, "dim": dim, "context": length, "norm": norm, "feedforward": feedforward}
        | {"attention": {"kind": "gqa", "heads": heads, "kv_heads": heads // 2}}
    )
    model = a.build(vocabulary)
    made = optimizer.build(model)
    session = Session(dtype=dtype)
    gradients = Gradients(Alone(model), NextToken(), 1.0, session)
    ids = torch.randint(vocabulary, (rows, length), generator=generator(0, "calibrate"))
    batch = Batch(ids, ids.roll(-1, 1), Places.causal(rows, length))

    def step() -> None:
        with fused(model) if session.kernels else nullcontext():
            gradients.of([batch], 0)
        made.step()
        made.zero_grad()

    return step


def references() -> tuple[list[tuple[Work, float]], list[tuple[list[Work], float]]]:
    """Every operation of the reference steps with its seconds; and of each step its operations and its whole time."""
    every: list[tuple[Work, float]] = []
    whole: list[tuple[list[Work], float]] = []
    for dtype in (None, torch.bfloat16):
        for number, shape in enumerate(REFERENCES):
            step = reference(*shape, dtype, Muon() if number % 2 else AdamW())
            step()
            times = []
            for _ in range(3):
                begin = time.perf_counter()
                step()
                times.append(time.perf_counter() - begin)
            for _ in range(2):
                with Timed() as mode:
                    step()
                every += mode.works
            whole.append(([work for work, _ in mode.works], min(times)))
    return every, whole


def grid() -> Iterator[tuple[Work, float]]:
    """Products of many shapes."""
    most = max(GRID["rows"]), max(GRID["inner"]), max(GRID["columns"])
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.ones(most[0], most[1], dtype=dtype), torch.ones(most[2], most[1], dtype=dtype)
        for rows in GRID["rows"]:
            for inner in GRID["inner"]:
                for columns in GRID["columns"]:
                    if rows * inner * columns > LARGEST / 2:
                        continue
                    with Timed() as mode:
                        for _ in range(3):
                            torch.mm(left[:rows, :inner], right[:columns, :inner].T)
                    yield mode.works[0][0], min(seconds for _, seconds in mode.works)


def tabled(timed: list[tuple[Work, float]]) -> tuple[list[Product], dict[str, list[Moved]]]:
    """Medians: of a product by shape, of any other operation by size, sizes within a factor of two together."""
    shapes: dict[Work, list[float]] = {}
    sizes: dict[str, dict[int, list[tuple[int, float]]]] = {}
    for work, seconds in timed:
        if work.sizes:
            shapes.setdefault(work._replace(bytes=0), []).append(seconds)
        else:
            near = sizes.setdefault(work.name, {}).setdefault(work.bytes.bit_length(), [])
            near.append((work.bytes, seconds))
    products = [
        Product(name=work.name, sizes=work.sizes, flops=work.flops, seconds=min(times))
        for work, times in shapes.items()
    ]
    moved = {
        name: [
            Moved(
                bytes=round(statistics.median(size for size, _ in near)),
                seconds=statistics.quantiles([seconds for _, seconds in near] * 2, n=4)[0],
            )
            for _, near in sorted(by_size.items())
        ]
        for name, by_size in sizes.items()
    }
    return products, moved


def beside(machine: Machine, whole: list[tuple[list[Work], float]]) -> float:
    """Seconds between operations: what the untimed steps took beyond their operations, least squares over the steps
    that are made of small ones."""
    left = [(seconds - machine.seconds(works), len(works)) for works, seconds in whole if seconds < 0.1]
    return max(0.0, sum(rest * count for rest, count in left) / sum(count**2 for _, count in left)) if left else 0.0


# ---------------------------------------------------------------- memory


def memory(shapes: int, all_shapes: int = 0) -> dict[str, Any]:
    """What this process holds before a step and after one, and what bf16 products of so many shapes add.

    More shapes than are kept show what all hold together; without, it is put at half as much again as one
    cache holds: oneDNN has one, and torch another before it.
    """
    with tempfile.TemporaryDirectory() as folder, PeakMemory() as peak:
        prepare_text(Text(), Path(folder) / "text", Session())  # what it imports stays
    give_back()
    figures: dict[str, Any] = {"import_bytes": resident_bytes()}
    figures["text_bytes"] = max(0, peak.bytes - resident_bytes())
    text_rates()  # what a tokenizer's training and the encoder leave stays too
    give_back()
    reference(*REFERENCES[0], torch.bfloat16, AdamW())()
    give_back()
    figures["bare_bytes"] = max(resident_bytes(), 1)
    left = torch.ones(300 + shapes + all_shapes, 192, dtype=torch.bfloat16)
    right = torch.ones(192, 320, dtype=torch.bfloat16)
    left[:100] @ right
    give_back()
    before = resident_bytes()

    def more(first: int, count: int) -> int:
        for rows in range(first, first + count):
            left[:rows] @ right
        return max(0, resident_bytes() - before)

    figures["primitive_bytes"] = each = more(101, shapes) / shapes
    figures["kernels_most"] = more(101 + shapes, all_shapes) if all_shapes else round(1.5 * KERNELS_KEPT * each)
    figures["bare_bytes"] -= round(STEP_SHAPES * each)  # the step's own kernels are counted with the others
    return figures


# ---------------------------------------------------------------- beside the mathematics


def token_seconds(machine: Machine) -> float:
    """Seconds that generating takes for a token of a row beside the model's own operations."""
    a = Architecture(layers=1, dim=32, context=64)
    model = a.build(256)
    rows, new = 8, 24
    prompts, sampling = [[1, 2, 3, 4]] * rows, Sampling(max_new_tokens=new)
    generate(model, prompts, sampling, (), range(rows))
    begin = time.perf_counter()
    generate(model, prompts, sampling, (), range(rows))
    whole = time.perf_counter() - begin
    with Timed() as mode, torch.no_grad():
        model.logits(model.hidden(torch.ones(rows, 1, dtype=torch.int64), Places.causal(rows, 1)))
    return max(0.0, whole - new * machine.seconds(work for work, _ in mode.works)) / (rows * new)


def text_rates() -> dict[str, float]:
    """Bytes of text a second through the text stage, the training of a tokenizer, and the encoder."""
    with tempfile.TemporaryDirectory() as folder:
        out, session = Path(folder), Session()
        begin = time.perf_counter()
        prepare_text(Text(), out / "text", session)
        cleaned = time.perf_counter()
        texts = list(read_texts(out / "text" / "train.jsonl"))
        size = sum(len(text.encode()) for text in texts)
        tokenizer = train_tokenizer(BPE(vocab_size=2048), iter(texts))
        trained = time.perf_counter()
        encode(tokenizer, out / "text", out / "tokens", session)
        end = time.perf_counter()
    return {
        "text_rate": size / (cleaned - begin),
        "train_rate": size / (trained - cleaned),
        "encode_rate": size / (end - trained),
    }


def disk_rates() -> dict[str, float]:
    """A small file and a large one, written as checkpoints are."""
    with tempfile.TemporaryDirectory() as folder:
        path, large = Path(folder) / "file", bytes(1 << 25)
        begin = time.perf_counter()
        for _ in range(4):
            atomic_bytes(path, b"x")
        small = (time.perf_counter() - begin) / 4
        begin = time.perf_counter()
        atomic_bytes(path, large)
        seconds = time.perf_counter() - begin
    return {"write_seconds": small, "write_rate": len(large) / max(seconds - small, 1e-3)}


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    figures = measured()
    plain = {name: value for name, value in figures.items() if name not in ("products", "moved")}
    plain["products"] = [product.model_dump() for product in figures["products"]]
    plain["moved"] = {name: [one.model_dump() for one in every] for name, every in figures["moved"].items()}
    print(json.dumps(plain))
