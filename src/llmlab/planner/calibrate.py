"""Measures this machine for the planner, in about 20 seconds: a process that has the imports of a run prints JSON.

Reference steps of four widths run under a mode that times every operation by itself; their whole steps, untimed, say
what lies between operations. Products and attention get a grid of shapes besides, since their rate depends on three
sizes, and elementwise arithmetic a row of them. Numbers come from memory as in a step, not from the last call's cache.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import cycle, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from llmlab.data.batch import Batch
from llmlab.data.chats import ChatBatches, TaskChats
from llmlab.data.sources import Reading
from llmlab.data.text import Text, prepare_text, read_texts
from llmlab.data.tokens import encode
from llmlab.evaluation.baselines import baselines
from llmlab.inference.engine import generate
from llmlab.inference.sampling import Sampling
from llmlab.model import kernels
from llmlab.model.fused import fused
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture
from llmlab.objectives.language import NextToken
from llmlab.planner.machine import Machine, Moved, Product, this_machine
from llmlab.planner.work import FUSED, OWN, Work, work_of
from llmlab.region import give_back, keep_freed_memory
from llmlab.runtime import (
    KERNELS_KEPT,
    PeakMemory,
    atomic_bytes,
    generator,
    keep_few_kernels,
    make_deterministic,
    resident_bytes,
)
from llmlab.stages import Session, Stage, run_stages
from llmlab.tokenization.chat import Renderer
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
GRID = {"rows": (1, 16, 128, 1024), "inner": (32, 256, 1024), "columns": (32, 256, 1024, 16384)}
ATTENTION = ((8, 64), (32, 64), (12, 256), (8, 1024))  # (rows times heads, length), each with these
HEAD = (16, 64)  # widths
ELEMENTS = [1 << power for power in range(8, 25, 2)]
COLD = 1 << 22  # numbers that are written between two timed calls, so that no cache holds what comes
STEP_SHAPES = 20  # of bf16 products in a reference step
CHATS, COMPRESSED = 2000, 1 << 18
LARGEST = 8e9  # multiply-adds of one timed product, twice


class Timed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operation with its seconds."""

    own = 0.0  # seconds that being timed adds

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
        called = torch.is_grad_enabled()
        begin = time.perf_counter()
        out = function(*args, **(kwargs or {}))
        seconds = max(time.perf_counter() - begin - self.own, 1e-7)
        self.works.append((work_of(function, args, out)._replace(called=called), seconds))
        return out

    @staticmethod
    def measured_own() -> float:
        """Seconds that being timed adds to an operation: what a tiny one takes so, less what it takes alone."""
        x, count = torch.ones(8), 400
        with Timed() as mode:
            for _ in range(count):
                x.add_(1.0)
        begin = time.perf_counter()
        for _ in range(count):
            x.add_(1.0)
        alone = (time.perf_counter() - begin) / count
        return max(0.0, float(statistics.median(seconds for _, seconds in mode.works)) - alone)


def measured() -> dict[str, Any]:
    """All figures of `Machine` but the key."""
    make_deterministic()
    keep_freed_memory()
    keep_few_kernels()
    figures: dict[str, Any] = memory(shapes=60, all_shapes=4 * KERNELS_KEPT)
    Timed.own = Timed.measured_own()
    timed, whole = references()
    products, moved = tabled([*timed, *grid(), *attentions(), *elementwise()])
    figures |= {"products": products, "moved": moved, "called_seconds": 0.0, "beside_seconds": 0.0}
    figures |= {"token_seconds": 0.0, "stage_seconds": stage_seconds()} | text_rates() | disk_rates()
    figures |= beside(Machine(key=this_machine(), **figures), whole)
    figures["token_seconds"] = token_seconds(Machine(key=this_machine(), **figures))
    # Now as many kernels are kept as can be, and what a run touches of the libraries has been touched.
    give_back()
    figures["bare_bytes"] = max(figures["import_bytes"], resident_bytes() - figures["kernels_most"])
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
        for shape, optimizer in ((REFERENCES[0], AdamW()), *zip(REFERENCES, cycle((Muon(), AdamW())), strict=False)):
            step = reference(*shape, dtype, optimizer)
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


def cold(action: Callable[[], object], name: str = "") -> list[tuple[Work, float]]:
    """The operations of an action (those of one name), with the median of three; nothing they read is in a cache."""
    action()
    found = list[list[tuple[Work, float]]]()
    for _ in range(3):
        torch.ones(COLD)
        with Timed() as mode:
            action()
        found.append([one for one in mode.works if one[0].name.startswith(name)])
    return [(ones[0][0], statistics.median(seconds for _, seconds in ones)) for ones in zip(*found, strict=True)]


def grid() -> Iterator[tuple[Work, float]]:
    """Products of many shapes."""
    most = max(GRID["rows"]), max(GRID["inner"]), max(GRID["columns"])
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.ones(most[0], most[1], dtype=dtype), torch.ones(most[2], most[1], dtype=dtype)
        for rows, inner, columns in product(*GRID.values()):
            if rows * inner * columns <= LARGEST / 2:
                yield from cold(partial(torch.mm, left[:rows, :inner], right[:columns, :inner].T))


def attentions() -> Iterator[tuple[Work, float]]:
    """Attention of many shapes, forward and backward: torch's, and the training kernels' where they can be had."""
    for (rows, length), width in product(ATTENTION, HEAD):
        mask = torch.ones(length, length, dtype=torch.bool).tril()
        for dtype in (torch.float32, torch.bfloat16):
            q, k, v = (torch.ones(1, rows, length, width, dtype=dtype, requires_grad=True) for _ in range(3))

            def both(q: Tensor = q, k: Tensor = k, v: Tensor = v, mask: Tensor = mask) -> None:
                mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
                torch.autograd.backward(mixed.sum())

            yield from cold(both, "attention")
        if kernels.available() is None:
            heads = rows // 4
            qkv = torch.ones(4, length, 3 * heads * width, dtype=torch.bfloat16)
            first = torch.zeros(4, length, dtype=torch.int32)
            few = (heads, heads, width, width**-0.5)
            out, lse = FUSED.attention(qkv, first, *few)
            yield from cold(partial(FUSED.attention, qkv, first, *few), "attention")
            yield from cold(partial(FUSED.attention_backward, qkv, first, out, lse, out, *few), "attention")


def elementwise() -> Iterator[tuple[Work, float]]:
    """A product number by number, of many sizes."""
    for size in ELEMENTS:
        x = torch.ones(size)
        yield from cold(partial(torch.mul, x, x))


def tabled(timed: list[tuple[Work, float]]) -> tuple[list[Product], dict[str, list[Moved]]]:
    """Medians: of a product by shape, of any other operation by size, sizes within a factor of two together."""
    shapes: dict[Work, list[float]] = {}
    sizes: dict[str, dict[int, list[tuple[int, float]]]] = {}
    for work, seconds in timed:
        if work.sizes:
            shapes.setdefault(work._replace(bytes=0, called=False), []).append(seconds)
        else:
            near = sizes.setdefault(work.name, {}).setdefault(work.bytes.bit_length(), [])
            near.append((work.bytes, seconds))
    products = [
        Product(name=work.name, sizes=work.sizes, flops=work.flops, seconds=statistics.median(times))
        for work, times in shapes.items()
    ]
    moved = {
        name: [
            Moved(
                bytes=round(statistics.median(size for size, _ in near)),
                seconds=statistics.median(seconds for _, seconds in near),
            )
            for _, near in sorted(by_size.items())
        ]
        for name, by_size in sizes.items()
    }
    return products, moved


def beside(machine: Machine, whole: list[tuple[list[Work], float]]) -> dict[str, float]:
    """Seconds between operations, those that modules asked for and the others: what the untimed steps took beyond
    their operations, by least squares over the steps that are made of small ones, neither below nothing."""
    short = [(works, seconds - machine.seconds(works)) for works, seconds in whole if seconds < 0.1]
    counts = torch.tensor([[sum(w.called for w in works), sum(not w.called for w in works)] for works, _ in short])
    left, counts = torch.tensor([seconds for _, seconds in short]).double()[:, None], counts.double()
    both = torch.linalg.lstsq(counts, left).solution.flatten().tolist()
    if min(both) < 0:
        alone = [max(0.0, float((counts[:, at] @ left) / counts[:, at].square().sum())) for at in (0, 1)]
        both = [alone[0], 0.0] if both[1] < 0 else [0.0, alone[1]]
    return {"called_seconds": both[0], "beside_seconds": both[1]}


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
    times = list[float]()
    for _ in range(4):
        begin = time.perf_counter()
        generate(model, prompts, sampling, (), range(rows))
        times.append(time.perf_counter() - begin)
    whole = min(times)
    with Timed() as mode, torch.no_grad():
        model.logits(model.hidden(torch.ones(rows, 1, dtype=torch.int64), Places.causal(rows, 1)))
    return max(0.0, whole - new * machine.seconds(work for work, _ in mode.works)) / (rows * new)


def stage_seconds() -> float:
    """Seconds of a stage that does nothing."""
    stage = Stage("nothing", {}, (), (), lambda out, session: {})
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        run_stages([stage], Path(folder), Session(), lambda line: None)
        return time.perf_counter() - begin


def text_rates() -> dict[str, float]:
    """Bytes of text a second through the text stage, the training of a tokenizer, and the encoder; seconds of a
    conversation that is made ready for training."""
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
        give_back()
        before, begin_rows = resident_bytes(), time.perf_counter()
        chats = list(TaskChats(n=CHATS).chats(0, Reading()))
        rows = ChatBatches(chats, Renderer(tokenizer), 512, 8, 8, 0)
        ready, held = time.perf_counter(), resident_bytes() - before
        del chats, rows
    some = "".join(texts).encode()[:COMPRESSED]
    begin_baselines = time.perf_counter()
    baselines(some, some[: COMPRESSED // 16])
    compressed = time.perf_counter()
    return {
        "baseline_rate": COMPRESSED / (compressed - begin_baselines),
        "row_seconds": (ready - begin_rows) / CHATS,
        "row_bytes": max(0, held) / CHATS,
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
