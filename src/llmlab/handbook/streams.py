"""A long text streamed through a small window: what its tokens cost as it goes on, with the first tokens kept and
without, and beside each what the exact way costs, in which the window before a token is read anew.

T tokens, N tokens that are scored both ways.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from llmlab.checkpoints.where import open_model
from llmlab.data import bundled
from llmlab.evaluation import statistics
from llmlab.handbook.fitting import fit
from llmlab.handbook.little_model import VOCABULARY, book, nats, passages
from llmlab.handbook.races.streams import EDGES
from llmlab.inference.caches import CacheKind, Dense, Rolling
from llmlab.longtext.stream import recomputed, stream
from llmlab.model.attention import MultiHead
from llmlab.model.transformer import Architecture, Transformer
from llmlab.runtime import PeakMemory, generator, resident_bytes

THOUSAND, MIB = 1000, 1 << 20


def profile(
    model: Transformer, ids: Sequence[int], cache: CacheKind, tokens: int, window: int, sampled: int, rows: int
) -> dict[str, float | str]:
    """The measures of the races for the first tokens of a text; the exact way reads `window` tokens for each."""
    nats_T, peaks, held, before = torch.zeros(tokens), dict[int, int](), 0, resident_bytes()
    with PeakMemory() as memory:
        for block in stream(model, ids, cache, tokens):
            read = block.first - 1 + len(block.nats)
            nats_T[block.first - 1 : read] = block.nats
            held = max(held, block.cache_bytes)
            peaks |= {edge: memory.bytes for edge in EDGES if edge not in peaks and read >= edge * THOUSAND}
    nats_T = nats_T.double()
    found: dict[str, float | str] = {"cache_bytes": float(held)}
    for start, edge in zip((0, *EDGES), EDGES, strict=False):
        there = edge * THOUSAND <= tokens
        cut = nats_T[start * THOUSAND : edge * THOUSAND]
        found[f"nats_{edge}k"] = float(cut.mean()) if there else "is not read"
        found[f"peak_mib_{edge}k"] = (peaks[edge] - before) / MIB if there else "is not read"
    by_thousand = nats_T[THOUSAND : tokens // THOUSAND * THOUSAND].view(-1, THOUSAND).mean(1)
    found |= _interval("slope", statistics.slope(torch.arange(len(by_thousand)) / 100, by_thousand))
    places_N = torch.linspace(2 * window, tokens, sampled, dtype=torch.float64).long()
    anew_N = recomputed(model, ids, places_N.tolist(), window, rows).double()
    gap_N = nats_T[places_N - 1] - anew_N
    found |= _interval("gap", statistics.mean(gap_N))
    return found | _interval("gap_slope", statistics.slope(places_N / 100_000, gap_N))


def _interval(name: str, found: statistics.Estimate) -> dict[str, float | str]:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def cache_of(settings: Mapping[str, Any]) -> CacheKind:
    if settings["window"] is None:
        return Dense()
    return Rolling(window=settings["window"], sinks=settings["sinks"])


# ---------------------------------------------------------------- a little model


@lru_cache(maxsize=1)  # the arms of one seed are ways to read with one model
def pretrained(context: int, rows: int, steps: int, rate: float, adamw_rate: float, seed: int) -> Transformer:
    """A model of the bundled book, one token a byte, rotary positions, every token seeing all before it."""
    model = Architecture(layers=4, dim=128, context=context, attention=MultiHead(heads=4)).build(VOCABULARY, seed)
    text, source = book()[0], generator(seed, "handbook", "streams")

    def loss(step: int) -> Tensor:
        return nats(model, passages(text, rows, context + 1, source))

    fit(model, loss, steps, rate, adamw_rate)
    return model


def little(settings: Mapping[str, Any], seed: int) -> dict[str, float | str]:
    """An arm: the held-out end of the book, read by the model of this seed."""
    told = (settings[name] for name in ("context", "rows", "steps", "rate", "adamw_rate"))
    with torch.enable_grad():
        model = pretrained(*told, seed)
    ids: list[int] = book()[1].tolist()
    exact = settings["context"]
    return profile(model, ids, cache_of(settings), settings["tokens"], exact, settings["sampled"], rows=16)


# ---------------------------------------------------------------- a pulled model


def real(settings: Mapping[str, Any], seed: int) -> dict[str, float | str]:
    """An arm: Moby Dick from its beginning, read by a pulled model."""
    bundle = open_model(settings["model"])
    assert bundle.tokenizer is not None
    text = bundled.path("moby_dick").read_text(encoding="utf-8")
    ids = bundle.tokenizer.encode(text[: 6 * settings["tokens"]])  # of English, more than so many tokens
    cache, exact = cache_of(settings), settings["exact"]
    return profile(bundle.model.eval(), ids, cache, settings["tokens"], exact, settings["sampled"], rows=1)
