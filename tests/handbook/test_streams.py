"""What the races of endless texts measure, against plain ways to find the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llmlab.handbook import streams
from llmlab.handbook.little_model import book
from llmlab.handbook.raced import race
from llmlab.inference.caches import Dense, Rolling
from llmlab.longtext.stream import stream
from llmlab.model.attention import MultiHead
from llmlab.model.transformer import Architecture

TOKENS, WINDOW = 4000, 24


def test_a_profile_is_of_the_losses_of_the_stream() -> None:
    """One layer sees its window and nothing through it: rolling without sinks costs what reading anew does."""
    a = Architecture(layers=1, dim=32, context=WINDOW, attention=MultiHead(heads=2), initial_std=0.2)
    model, ids = a.build(256, 0).eval(), book()[1][: TOKENS + 1].tolist()
    alone, kept = Rolling(window=WINDOW, sinks=0), Rolling(window=WINDOW - 4, sinks=4)
    found = {cache: streams.profile(model, ids, cache, TOKENS, WINDOW, sampled=40, rows=8) for cache in (alone, kept)}
    for cache, told in found.items():
        nats = torch.cat([block.nats for block in stream(model, ids, cache, TOKENS)]).double()
        assert told["nats_1k"] == pytest.approx(float(nats[:1000].mean()))
        assert told["nats_2k"] == pytest.approx(float(nats[1000:2000].mean()))
        assert told["nats_8k"] == told["peak_mib_100k"] == "is not read"
        assert told["cache_bytes"] == cache.nbytes(a, 1, 0)
        assert set(told) == set(race("streams").measures) == set(race("endless_text").measures)
    assert abs(float(found[alone]["gap"])) < 1e-5
    assert abs(float(found[kept]["gap"])) > 1e-4  # four of the tokens that it sees are others


@pytest.mark.parametrize("window", [28, None])
def test_an_arm_of_the_little_model(window: int | None) -> None:
    settings: dict[str, Any] = {
        "context": 32, "rows": 2, "steps": 3, "rate": 2e-2, "adamw_rate": 1e-2,
        "window": window, "sinks": 4, "tokens": 4000, "sampled": 8,
    }  # fmt: skip
    found = streams.little(settings, 0)
    assert float(found["gap_low"]) <= float(found["gap"]) <= float(found["gap_high"])
    assert isinstance(streams.cache_of(settings), Dense if window is None else Rolling)
