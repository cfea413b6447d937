"""What published machines would do by their data sheets: ceilings for 7B weights, launches for a small model."""

from __future__ import annotations

import torch

from llmlab.handbook.ledger import shaped
from llmlab.handbook.question import Figures
from llmlab.handbook.roofline import Roofline, Work, decode_work, prefill_work
from llmlab.handbook.smollm2_shape import LLAMA_7B, LLAMA_VOCABULARY, SMOLLM2, VOCABULARY
from llmlab.inference.cache import DenseCache
from llmlab.interpret.live_bytes import LiveBytes
from llmlab.model.places import Places

# NVIDIA A100 80 GB SXM, data sheet of 2021: 2,039 GB/s; 312 TFLOP/s in bf16 on tensor cores, without sparsity.
A100 = Roofline(bandwidth=2.039e12, peak=312e12)
DESKTOP = 51.2e9  # bytes a second: two channels of DDR4-3200, each 8 bytes wide
KERNEL = 3.8e-6  # seconds a short kernel launched one after another; Gray 2019, NVIDIA's post on CUDA Graphs
PROMPT, LENGTH = 2048, 1024  # tokens of a prompt, and of a text while it is written
SHORT, LONG = 128, 8192  # tokens of a text, to see what its length costs


def seven() -> tuple[Work, Work]:
    """Of LLaMA-7B in two bytes a number, one text: a prompt read, and a token written."""
    prompt = prefill_work(LLAMA_7B, LLAMA_VOCABULARY, "bf16", 1, PROMPT, 2)
    return prompt, decode_work(LLAMA_7B, LLAMA_VOCABULARY, "bf16", 1, LENGTH, 2)


def ceilings() -> Figures:
    """Of published machines for a token of 7B weights, the cache aside; a small model's launches; what size costs."""
    token = decode_work(LLAMA_7B, LLAMA_VOCABULARY, "bf16", 1, 0, 2)
    small, short, long = (decode_work(SMOLLM2, VOCABULARY, "bf16", 1, length, 2) for length in (LENGTH, SHORT, LONG))
    launches = operations()
    a100, desktop = A100.bandwidth / token.bytes, DESKTOP / token.bytes
    return {
        "a100_7b_tokens": a100,
        "desktop_7b_tokens": desktop,
        "ceilings_gap": max(abs(a100 / 151 - 1), abs(desktop / 3.8 - 1)),
        "a100_ridge": A100.ridge,
        "operations_a_token": launches,
        "launched_tokens": 1 / (launches * KERNEL),
        "launches_over_memory": launches * KERNEL / A100.seconds(small.bytes, small.flops),
        "size_cost": seven()[1].bytes / small.bytes,
        "length_cost": long.bytes / short.bytes,
    }


def operations() -> float:
    """Operations with a result of their own in one token of SmolLM2: from two and four layers, the rest is a line."""
    counted: list[int] = []
    for layers in (2, 4):
        model, cache = shaped(SMOLLM2, 16, layers=layers), DenseCache(2)
        model.hidden(torch.zeros(1, 1, dtype=torch.int64), Places.causal(1, 1), cache)
        with LiveBytes() as live:
            model.logits(model.hidden(torch.zeros(1, 1, dtype=torch.int64), Places.causal(1, 2)[:, 1:], cache))
        counted.append(live.operations)
    each = (counted[1] - counted[0]) / 2
    return counted[0] + each * (SMOLLM2.layers - 2)
