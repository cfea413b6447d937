"""Prefill and decoding timed beside the ceilings of the machine: SmolLM2 in one kind of weights, several batches.

What is timed and the ceilings are measured in turns, and the median of the turns is kept. Within a turn both are the
fastest of several: what else runs on the machine only ever adds time. One thread, as in every trial: a step shared by
threads waits at each of its hundred meeting points for whoever was sent to sleep.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch

from llmlab.handbook.roofline import Roofline, bandwidth, decode_work, matmul_peak, prefill_work
from llmlab.inference.batching import Batching, Request
from llmlab.inference.engine import generate
from llmlab.inference.fast import FastModel
from llmlab.inference.sampling import Sampling
from llmlab.language_model import LanguageModel, load
from llmlab.model.transformer import Transformer
from llmlab.runtime import generator, threads

BATCHES = (1, 4, 16)
KINDS = ("fp32", "bf16", "int8", "int4")
TIMED = ("decode tokens/s", "decode over roofline", "prefill tokens/s", "prefill over roofline")
CEILINGS = ("gigabytes/s", "gigaflops/s")
MEASURES = (*(f"{name}@{rows}" for name in TIMED for rows in BATCHES), *CEILINGS, "native")
Prompts = list[list[int]]


def run(settings: Mapping[str, Any], seed: int) -> dict[str, float | str]:
    """A figure for each of `MEASURES`. InputError where the weights were not pulled."""
    kind, length, new = settings["weights"], settings["prompt"], settings["new"]
    turns: dict[str, list[float]] = {name: [] for name in MEASURES}
    with threads(1):
        lm = load("smollm2", kind)
        native = lm.batching is not None and isinstance(lm.batching.model, FastModel)
        a, vocabulary = lm.bundle.architecture, lm.model.vocab_size
        cached = 2 if native or kind == "bf16" else 4
        for turn in range(settings["turns"]):
            machine = Roofline(bandwidth(), matmul_peak(_arithmetic(kind, native)))
            turns["gigabytes/s"].append(machine.bandwidth / 1e9)
            turns["gigaflops/s"].append(machine.peak / 1e9)
            for rows in BATCHES:
                source = generator(seed, "handbook", "speeds", turn, rows)
                prompts = torch.randint(vocabulary, (rows, length), generator=source).tolist()
                prefill, decode = _timed(lm, prompts, new)
                work = prefill_work(a, vocabulary, kind, rows, length, cached)
                turns[f"prefill tokens/s@{rows}"].append(rows * length / prefill)
                turns[f"prefill over roofline@{rows}"].append(prefill / machine.seconds(work.bytes, work.flops))
                work = decode_work(a, vocabulary, kind, rows, length + new // 2, cached)
                turns[f"decode tokens/s@{rows}"].append(rows / decode)
                turns[f"decode over roofline@{rows}"].append(decode / machine.seconds(work.bytes, work.flops))
    found = {name: statistics.median(values) for name, values in turns.items() if values}
    return {**found, "native": float(native)}


def _arithmetic(kind: str, native: bool) -> torch.dtype:
    """What products are made of: the native step multiplies quantised weights by int8, the plain kernels by bf16."""
    if kind == "fp32":
        return torch.float32
    return torch.int8 if native and kind != "bf16" else torch.bfloat16


def _timed(lm: LanguageModel, prompts: Prompts, new: int) -> tuple[float, float]:
    """Seconds until every row has its first token, and seconds of the fastest step that gives each row one more."""
    if lm.batching is not None:
        return _batched(lm.batching, prompts, new)
    times = token_times(lm.model, prompts, new)
    return times[0], min(after - before for before, after in itertools.pairwise(times))


def token_times(model: Transformer, prompts: Prompts, new: int) -> list[float]:
    """Seconds from the start until the first text has its 1st, 2nd, ... new token, all texts written by the engine."""
    times: list[float] = []

    def mark(row: int, token: int) -> bool:
        if row == 0:
            times.append(time.perf_counter() - begin)
        return False

    sampling = Sampling(temperature=0, max_new_tokens=new)
    begin = time.perf_counter()
    generate(model, prompts, sampling, (), [0] * len(prompts), on_token=mark)
    return times


def _batched(batching: Batching, prompts: Prompts, new: int) -> tuple[float, float]:
    begin = time.perf_counter()
    batching.generate([Request(prompt, Sampling(temperature=0, max_new_tokens=1)) for prompt in prompts])
    prefill = time.perf_counter() - begin
    for prompt in prompts:
        batching.submit(Request(prompt, Sampling(temperature=0, max_new_tokens=new)))
    steps, started = list[float](), set[int]()
    while batching.busy:
        begin = time.perf_counter()
        rows = [token.row for token in batching.step()]
        if len(started) == len(rows) == len(prompts):  # all have read their prompts, and none is done
            steps.append(time.perf_counter() - begin)
        started.update(rows)
    return prefill, min(steps)
