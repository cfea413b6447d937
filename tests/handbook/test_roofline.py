"""The roofline: ceilings that bound, and work that is the work done."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from llmlab.handbook.roofline import (
    Roofline,
    bandwidth,
    cache_bytes,
    decode_work,
    matmul_peak,
    matrix_weights,
    prefill_work,
    weight_bytes,
)
from llmlab.inference.cache import DenseCache
from llmlab.inference.packing import KINDS, pack
from llmlab.model.attention import GroupedQuery
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture

SMALL = Architecture(layers=3, dim=96, context=64, attention=GroupedQuery(heads=6, kv_heads=2))
VOCABULARY = 160


def test_the_longer_of_two_times() -> None:
    machine = Roofline(bandwidth=10.0, peak=100.0)
    assert machine.ridge == 10
    assert machine.seconds(bytes=20, flops=100) == 2  # waits for memory
    assert machine.seconds(bytes=20, flops=400) == 4  # waits for arithmetic


def test_ceilings_are_of_a_machine() -> None:
    assert 1e8 < bandwidth(1 << 24, 2) < 1e13
    assert 1e8 < matmul_peak(torch.float32, 128, 2) < 1e15
    assert 1e8 < matmul_peak(torch.int8, 128, 2) < 1e15


@pytest.mark.parametrize("weights", KINDS)
def test_packed_bytes_are_those_of_the_packing(weights: str) -> None:
    empty = SMALL.model_copy(update={"layers": 1})
    own = sum(
        pack(torch.randn(shape), weights).data.nbytes for shape in ((96 + 64, 96), (96, 96), (512, 96), (96, 256))
    )  # type: ignore[arg-type]
    head = pack(torch.randn(VOCABULARY, 96), "int8" if weights == "int4" else weights).data.nbytes  # type: ignore[arg-type]
    assert weight_bytes(empty, VOCABULARY, weights) == own + head


def test_operations_are_those_that_torch_counts() -> None:
    model = SMALL.build(VOCABULARY, 0).eval()
    assert matrix_weights(SMALL) == sum(p.numel() for name, p in model.blocks.named_parameters() if p.ndim == 2)
    ids, at, cache = torch.ones(2, 20, dtype=torch.int64), Places.causal(2, 21), DenseCache(32)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # of the fused kernel torch counts nothing
        with FlopCounterMode(display=False) as counted:
            hidden = model.hidden(ids, at[:, :20], cache)
            model.logits(hidden[:, -1])
        work = prefill_work(SMALL, VOCABULARY, "fp32", 2, 20, 4)
        hidden_keys = 4 * 3 * 96 * 2 * 20 * 19 / 2  # what the mask hides, torch counts
        assert counted.get_total_flops() == work.flops + hidden_keys
        with FlopCounterMode(display=False) as counted:
            model.logits(model.hidden(ids[:, :1], at[:, 20:], cache)[:, -1])
        assert counted.get_total_flops() == decode_work(SMALL, VOCABULARY, "fp32", 2, 21, 4).flops
    held = sum(buffer.nbytes for buffers in (cache._keys, cache._values) for buffer in buffers.values())
    assert held == 2 * 32 * cache_bytes(SMALL, 4)
