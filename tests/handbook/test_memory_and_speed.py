"""What questions 12 and 13 count and time with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llmlab.checkpoints.bundle import Bundle
from llmlab.checkpoints.where import open_model
from llmlab.handbook import release, speeds
from llmlab.handbook.ledger import MIB, cached_bytes, fill, holes, in_pieces, lengths, reserved, wasted, whole
from llmlab.handbook.races.release import RACE as RELEASE
from llmlab.handbook.races.speed import RACE as SPEED
from llmlab.handbook.smollm2_shape import LLAMA_7B, LLAMA_VOCABULARY, SMOLLM2, VOCABULARY
from llmlab.inference import native
from llmlab.inference.batching import Batching
from llmlab.inference.cache import DenseCache
from llmlab.inference.fast import FastModel
from llmlab.inference.int8_cache import Int8Cache
from llmlab.interpret.live_bytes import LiveBytes
from llmlab.language_model import LanguageModel
from llmlab.model.attention import GroupedQuery
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture, Transformer

TINY = Architecture(layers=2, dim=64, context=128, attention=GroupedQuery(heads=2, kv_heads=1, head_dim=32))


def tiny() -> Transformer:
    model: Transformer = TINY.build(160, 0).eval()
    return model


def test_live_bytes_rise_and_fall() -> None:
    known = torch.ones(1000)
    with LiveBytes([known]) as live:
        a = known + 1
        view = a[:10]
        assert live.bytes == live.peak == 4000
        known.view(10, 100)  # neither a copy nor new
        assert live.bytes == 4000
        b = torch.cat([a, a])
        assert (live.bytes, live.peak) == (12_000, 12_000)
        del a
        assert live.bytes == 12_000  # the view holds it
        del view, b
        assert (live.bytes, live.peak, live.largest) == (0, 12_000, 8000)


def test_live_bytes_see_what_gradients_hold() -> None:
    weight = torch.ones(100, 100, requires_grad=True)
    with LiveBytes([weight]) as live:
        y = (weight.exp() * 2).exp()
        assert live.bytes == 3 * 40_000 - 40_000  # both exponentials are needed again, the product is not
        del y
        assert live.bytes == 0


def test_a_graph_takes_more_and_pieces_less() -> None:
    model = tiny()
    graph, plain = whole(model, 100, grad=True), whole(model, 100, grad=False)
    pieces = in_pieces(model, 100, DenseCache(100))
    assert graph.kept > 0
    assert plain.kept == pieces.kept == 0
    assert pieces.peak <= plain.peak < graph.peak


def test_eight_bits_are_a_cache() -> None:
    model, ids = tiny(), torch.arange(60).view(2, 30)
    at = Places.causal(2, 30)
    exact, narrow = DenseCache(30), Int8Cache(30)
    with torch.no_grad():
        for piece in (slice(0, 11), slice(11, 29), slice(29, 30)):
            wide, close = (model.hidden(ids[:, piece], at[:, piece], cache) for cache in (exact, narrow))
            assert (wide - close).norm() < 0.02 * wide.norm()
            assert not torch.equal(wide, close)
    assert cached_bytes(exact) == 2 * 2 * 2 * 30 * 32 * 4
    assert cached_bytes(narrow) == 2 * 2 * 2 * 30 * (32 + 2)


def test_a_filled_cache_is_empty() -> None:
    cache = DenseCache(16)
    fill(tiny(), cache, rows=3)
    assert cache.length == 0
    assert cached_bytes(cache) == 2 * 2 * 3 * 16 * 32 * 4


def test_pages_waste_less_than_one_a_text() -> None:
    assert wasted([16, 32], 64) == (1 - 48 / 128, 0.0)
    assert wasted([1], 64) == (1 - 1 / 64, 1 - 1 / 16)
    texts = lengths(0, 50, 512)
    assert min(texts) >= 16
    assert max(texts) <= 512
    assert wasted(texts, 512)[1] < 15 * len(texts) / sum(texts)
    assert holes([32, 16, 64, 16]) == (4 / 6, 1.0)


def test_segments_of_a_gpu() -> None:
    assert reserved([]) == 0
    assert reserved([100]) == reserved([MIB, MIB]) == 2 * MIB
    assert reserved([MIB, MIB, 1]) == 4 * MIB
    assert reserved([5 * MIB] * 4) == 20 * MIB
    assert reserved([5 * MIB] * 5) == 40 * MIB
    assert reserved([10 * MIB]) == 10 * MIB
    assert reserved([33 * MIB]) == 34 * MIB


def test_races_ask_for_what_is_measured() -> None:
    assert SPEED.measures == speeds.MEASURES
    assert RELEASE.measures == release.MEASURES
    assert [settings["weights"] for settings in SPEED.arms.values()] == list(speeds.KINDS)


def test_resident_memory_of_a_life() -> None:
    found = release.run({"layers": 1, "texts": 1, "length": 16, "new": 2}, 0)
    loaded, peak = found["loaded"], found["peak"]
    assert isinstance(loaded, float)
    assert isinstance(peak, float)
    assert peak >= loaded > 4 * VOCABULARY * SMOLLM2.dim / 1e6


@pytest.mark.parametrize("way", ["plain", "native"])
def test_prefill_and_steps_are_timed(way: str) -> None:
    model = tiny()
    batching = None
    if way == "native":
        if (reason := native.available()) is not None:
            pytest.skip(reason)
        batching = Batching(FastModel(model, "int8", 32))
    lm = LanguageModel(Bundle(model, None, TINY, "made here"), batching)
    prefill, decode = speeds._timed(lm, [[row, *range(1, 40)] for row in range(3)], 6)
    assert 0 < decode < prefill < 5


def test_shapes_are_the_published_ones(smollm2: Path) -> None:
    assert open_model("smollm2").architecture == SMOLLM2
    assert open_model("smollm2").model.vocab_size == VOCABULARY


def test_llama_has_its_parameters() -> None:
    from llmlab.handbook.roofline import matrix_weights

    norms, tables = (2 * LLAMA_7B.layers + 1) * LLAMA_7B.dim, 2 * LLAMA_VOCABULARY * LLAMA_7B.dim
    assert matrix_weights(LLAMA_7B) + norms + tables == 6_738_415_616
