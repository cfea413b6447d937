"""Tokens a second of training SmolLM2-135M whole, 4 rows of 256 tokens a step: ours against transformers with fused
AdamW under bf16 autocast, from the same weights on the same rows.

Beside the ratio: the share of this machine's own bf16 matmul peak that goes into the model's products, the peak memory
of either side in a process of its own, and the two loss curves.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from paired import measure, report

from llmlab.adapters.opening import open_policy
from llmlab.checkpoints.hf import save_hf
from llmlab.data import bundled
from llmlab.data.batch import Batch
from llmlab.data.state import State
from llmlab.model.places import Places
from llmlab.objectives.language import NextToken
from llmlab.region import keep_freed_memory
from llmlab.runtime import PeakMemory, make_deterministic
from llmlab.stages import Session
from llmlab.training.adamw import AdamW
from llmlab.training.loop import Training, stepping
from llmlab.training.schedules import Constant

THREADS, ROWS, LENGTH, LR, CURVE = 2, 4, 256, 1e-5, 10
STEPS = 2  # that a rate is the mean of


def rows(count: int) -> list[torch.Tensor]:
    """So many times int64 [4, 257] of the bundled novel: what both sides train on, step by step."""
    tokenizer = open_policy("smollm2").tokenizer
    assert tokenizer is not None
    ids = torch.tensor(tokenizer.encode(bundled.path("moby_dick").read_text(encoding="utf-8")[:200_000]))
    size = ROWS * (LENGTH + 1)
    return [ids[step * size : (step + 1) * size].view(ROWS, LENGTH + 1) for step in range(count)]


class Rows:
    """The same as batches of the loop."""

    def __init__(self, texts: list[torch.Tensor]) -> None:
        self.texts, self.step = texts, 0

    def next(self, model: Any) -> list[Batch]:
        text = self.texts[self.step % len(self.texts)]
        self.step += 1
        at = Places.causal(ROWS, LENGTH)
        return [Batch(text[:, :-1].contiguous(), text[:, 1:].contiguous(), at)]

    def state(self) -> State:
        return State({}, {"step": self.step})

    def load(self, state: State) -> None:
        raise NotImplementedError


Step = Callable[[], float]  # one optimizer step; its loss


@contextmanager
def ours(texts: list[torch.Tensor]) -> Iterator[Step]:
    """A step of the one loop, as `llmlab run` takes it."""
    model = open_policy("smollm2").model.train()
    model.requires_grad_(True)
    settings = Training(steps=10**6, optimizer=AdamW(lr=LR, weight_decay=0.0), schedule=Constant(warmup=0.0), clip=None)
    with stepping(model, NextToken(), Rows(texts), settings, Session(dtype=torch.bfloat16)) as loop:

        def step() -> float:
            loop.values["terms"] = {}
            loop.update()
            total, count = loop.values["terms"]["cross_entropy"]
            return float(total / count)

        yield step


@contextmanager
def peer(texts: list[torch.Tensor]) -> Iterator[Step]:
    """The usual loop around transformers."""
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        save_hf(Path(folder), open_policy("smollm2"))
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    number = 0

    def step() -> float:
        nonlocal number
        text = texts[number % len(texts)]
        number += 1
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=text[:, :-1]).logits
            loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), text[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    yield step


SIDES = {"ours": ours, "peer": peer}


class Worker:
    """One side in a process of its own, as it would be used: what one does to the allocator does not help the other."""

    def __init__(self, side: str) -> None:
        command = [sys.executable, __file__, "--side", side]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def asked(self, line: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(line, file=self.process.stdin, flush=True)
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def rate(self) -> float:
        """Real tokens a second: no row has padding."""
        return float(self.asked("rate")["tokens_per_second"])


def work(side: str) -> None:
    """Answers each line of standard input: `curve` (losses of the first steps, peak memory), `rate`."""
    if side == "ours":
        make_deterministic()
        keep_freed_memory()
    with PeakMemory() as peak, SIDES[side](rows(CURVE)) as step:
        for line in sys.stdin:
            begin = time.perf_counter()
            if line.strip() == "curve":
                print(json.dumps({"losses": [step() for _ in range(CURVE)], "peak_bytes": peak.bytes}), flush=True)
            else:
                for _ in range(STEPS):
                    step()
                seconds = time.perf_counter() - begin
                print(json.dumps({"tokens_per_second": STEPS * ROWS * LENGTH / seconds}), flush=True)


def matmul_peak() -> float:
    """The most FLOP/s of a large bf16 product here."""
    a, b = (torch.randn(2048, 2048, dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(20):
        begin = time.perf_counter()
        a @ b
        best = max(best, 2 * 2048**3 / (time.perf_counter() - begin))
    return best


def flops_a_token() -> float:
    """Of the products of weights, forward and backward: 6 a weight. The lookup is none, the tied head is one."""
    model = open_policy("smollm2").model
    return 6.0 * sum(p.numel() for p in model.parameters() if p.ndim == 2)


def main() -> None:
    if "--side" in sys.argv:
        work(sys.argv[sys.argv.index("--side") + 1])
        return
    workers = {side: Worker(side) for side in SIDES}
    curves = {side: worker.asked("curve") for side, worker in workers.items()}
    peaks = [matmul_peak()]
    claims = {"train_over_transformers": measure(workers["ours"].rate, workers["peer"].rate)}
    peaks.append(matmul_peak())
    for worker in workers.values():
        worker.process.terminate()
    speeds = claims["train_over_transformers"]
    apart = [a - b for a, b in zip(curves["ours"]["losses"], curves["peer"]["losses"], strict=True)]
    report(
        "train",
        "tokens/s",
        claims,
        ("torch", "transformers"),
        {
            "memory_over_transformers": round(curves["ours"]["peak_bytes"] / curves["peer"]["peak_bytes"], 3),
            "peak_bytes": {side: found["peak_bytes"] for side, found in curves.items()},
            "matmul_peak_gflops": round(max(peaks) / 1e9, 1),
            "share_of_peak": {
                side: round(max(rates) * flops_a_token() / max(peaks), 3) for side, rates in speeds.items()
            },
            "losses": {side: [round(loss, 4) for loss in found["losses"]] for side, found in curves.items()},
            "largest_loss_difference": round(max(map(abs, apart)), 4),
            "mean_loss_difference": round(sum(apart) / len(apart), 5),
        },
    )


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    main()
