"""A roofline: work takes as long as its bytes need to be moved, or its operations to be done, whichever is longer.

(Williams, Waterman & Patterson 2009; for language models Pope et al. 2022, arXiv 2211.05102.) The two ceilings are
measured on the machine at hand with as many threads as torch has; the work is counted from a model's shape.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from llmlab.inference.packing import TILE
from llmlab.model.groups import GROUP
from llmlab.model.transformer import Architecture

STREAMED = 1 << 28  # bytes read in one go: several times any cache of a CPU's last level
SIDE = 1536  # of the square matrices multiplied: a few caches full, and long enough to hide their edges
REPEATS = 7

# Bytes a weight takes: plain, or as `inference/packing.py` lays out a tile with its 16 steps and 16 least values.
_SCALES = 2 * 2 * TILE / (TILE * GROUP)
WEIGHT_BYTES = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0 + _SCALES, "int4": 0.5 + _SCALES}


@dataclass(frozen=True)
class Work:
    """Bytes that must be moved and floating-point operations that must be done; a multiply-add counts as two."""

    bytes: float
    flops: float

    @property
    def intensity(self) -> float:
        """Operations a byte."""
        return self.flops / self.bytes


@dataclass(frozen=True)
class Roofline:
    """A machine by its two ceilings: bytes a second, operations a second."""

    bandwidth: float
    peak: float

    def seconds(self, bytes: float, flops: float) -> float:
        """The least time for so many bytes and operations."""
        return max(bytes / self.bandwidth, flops / self.peak)

    @property
    def ridge(self) -> float:
        """The intensity from which on arithmetic is what is waited for, in operations a byte."""
        return self.peak / self.bandwidth


def bandwidth(size: int = STREAMED, repeats: int = REPEATS) -> float:
    """Bytes a second that this machine reads from memory: the best of two plain reductions over a large array, and of
    `repeats` times each, as STREAM (McCalpin 1995) does."""
    values = torch.ones(size // 4)
    return size / min(_best(lambda: values.sum(), repeats), _best(lambda: values.amax(), repeats))


def matmul_peak(dtype: torch.dtype, side: int = SIDE, repeats: int = REPEATS) -> float:
    """Operations a second of a square matrix product of this dtype, int8 with sums in int32; the best of `repeats`."""
    if dtype == torch.int8:
        a = torch.ones(side, side, dtype=dtype)
        return 2 * side**3 / _best(lambda: torch._int_mm(a, a), repeats)
    b = torch.ones(side, side, dtype=dtype)
    return 2 * side**3 / _best(lambda: b @ b, repeats)


def _best(run: Callable[[], Tensor], repeats: int) -> float:
    """Seconds of the fastest run after one that is not counted."""
    run()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times)


# ---------------------------------------------------------------- a model's work


def matrix_weights(a: Architecture) -> int:
    """Weights of all blocks' matrices of a llama-like model: what each token is multiplied by, the head aside."""
    heads, width = a.keyed, a.attention.width(a.dim)
    attention = a.dim * width * (2 * heads.heads + 2 * heads.key_heads)
    return a.layers * (attention + 3 * a.dim * a.feedforward.hidden_width(a.dim))


def cache_bytes(a: Architecture, bytes_per_number: float) -> float:
    """Bytes of keys and values a token: 2 x layers x key/value heads x head width x bytes of a number."""
    return 2 * a.layers * a.keyed.key_heads * a.attention.width(a.dim) * bytes_per_number


def weight_bytes(a: Architecture, vocabulary: int, weights: str) -> float:
    """Bytes of the matrices and the head as one pass reads them; the native step keeps the head of int4 in int8."""
    head = "int8" if weights == "int4" else weights
    return matrix_weights(a) * WEIGHT_BYTES[weights] + vocabulary * a.dim * WEIGHT_BYTES[head]


def decode_work(a: Architecture, vocabulary: int, weights: str, rows: int, length: int, cached: float) -> Work:
    """One new token for each of `rows` texts of `length` tokens, itself included; `cached` bytes a number of the
    cache. Every weight is read once for all rows, each row's keys and values once."""
    seen = 4 * a.layers * a.keyed.heads * a.attention.width(a.dim) * length
    flops = rows * (2 * (matrix_weights(a) + vocabulary * a.dim) + seen)
    return Work(weight_bytes(a, vocabulary, weights) + rows * length * cache_bytes(a, cached), flops)


def prefill_work(a: Architecture, vocabulary: int, weights: str, rows: int, length: int, cached: float) -> Work:
    """`rows` prompts of `length` tokens read in one pass, logits of the last token only; what a mask hides is not
    counted."""
    seen = 4 * a.layers * a.keyed.heads * a.attention.width(a.dim) * length * (length + 1) / 2
    flops = rows * (2 * length * matrix_weights(a) + 2 * vocabulary * a.dim + seen)
    return Work(weight_bytes(a, vocabulary, weights) + rows * length * cache_bytes(a, cached), flops)
