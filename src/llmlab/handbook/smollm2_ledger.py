"""The ledger of SmolLM2, for question 12: what inference takes at several lengths, and what each remedy saves."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from llmlab.handbook.ledger import (
    MIB,
    Pass,
    cached_bytes,
    fill,
    holes,
    in_pieces,
    lengths,
    one_more,
    reserved,
    shaped,
    wasted,
    whole,
    without_data,
)
from llmlab.handbook.question import Figures
from llmlab.handbook.roofline import cache_bytes
from llmlab.handbook.smollm2_shape import LLAMA_7B, SMOLLM2, VOCABULARY
from llmlab.inference.cache import DenseCache
from llmlab.inference.int8_cache import Int8Cache
from llmlab.model.attention import MultiHead
from llmlab.model.places import Places
from llmlab.model.transformer import Transformer
from llmlab.runtime import generator

LENGTHS = (128, 2048, 8192)
PARAMETERS = 134_515_008  # of SmolLM2, by the header of its published file
WIDE, HALF = 4, 2  # bytes of a number in fp32, in fp16
CHECKED, CHECKED_LAYERS = 700, 2  # tokens and layers of what is run with data and without
TEXTS, CONTEXT = 200, 8192
ROWS = 4


def _sizes(model: Transformer, length: int) -> Figures:
    """What SmolLM2 takes for one text of a length; activations with a graph, without, and as the engine reads it."""
    ids, cache = torch.zeros(1, length, dtype=torch.int64), DenseCache(length)
    pieces = in_pieces(model, length, cache)
    graph, plain = whole(model, length, grad=True), whole(model, length, grad=False)
    with torch.no_grad():
        last = model.logits(torch.zeros(1, 1, SMOLLM2.dim)).nbytes
        full = model.logits(torch.zeros(1, length, SMOLLM2.dim)).nbytes
    return {
        f"ids_{length}": float(ids.nbytes),
        f"kv_{length}": float(cached_bytes(cache)),
        f"pieces_{length}": float(pieces.peak),
        f"whole_{length}": float(plain.peak),
        f"graph_{length}": float(graph.peak),
        f"kept_{length}": float(max(pieces.kept, plain.kept)),
        f"logits_last_{length}": float(last),
        f"logits_full_{length}": float(full),
    }


def sizes() -> Figures:
    """Every row of the ledger at each length, their shares, and the formula of the cache beside what it holds."""
    model = shaped(SMOLLM2, VOCABULARY)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    found: Figures = {"weights": float(weights), "weights_gap": float(abs(weights - WIDE * PARAMETERS))}
    with without_data(model) as empty:
        for length in LENGTHS:
            found |= _sizes(empty, length)
        early, late = (one_more(empty, DenseCache(length), length - 1) for length in (LENGTHS[0], LENGTHS[-1]))
    each = cache_bytes(SMOLLM2, WIDE)
    totals = {length: sum(_terms(found, length).values()) for length in LENGTHS}
    plain = found["whole_2048"]
    return found | {
        "weights_share_128": weights / totals[128],
        "kv_share_8192": found["kv_8192"] / totals[8192],
        "ids_share_largest": max(found[f"ids_{length}"] / totals[length] for length in LENGTHS),
        "ids_bytes_a_token": found["ids_8192"] / 8192,
        "kept_largest": max(found[f"kept_{length}"] for length in LENGTHS),
        "graph_over_plain_2048": found["graph_2048"] / plain,
        "logits_over_activations_2048": found["logits_full_2048"] / found["pieces_2048"],
        "kv_bytes_a_token": each,
        "kv_gap": max(abs(found[f"kv_{length}"] - length * each) for length in LENGTHS),
        "llama_kv_bytes_a_token": cache_bytes(LLAMA_7B, HALF),
        "step_growth_share": (late.peak - early.peak) / (LENGTHS[-1] - LENGTHS[0]) / each,
    }


def _terms(f: Mapping[str, float], length: int) -> dict[str, float]:
    """The rows of the ledger while one text is read as the engine reads it."""
    return {"weights": f["weights"], **{name: f[f"{name}_{length}"] for name in ("kv", "ids", "pieces", "logits_last")}}


def without_data_gap() -> Figures:
    """Tensors with data against tensors without: the same bytes, pass by pass."""

    def passes(model: Transformer) -> list[Pass]:
        cache = DenseCache(CHECKED)
        return [
            whole(model, CHECKED, grad=True),
            whole(model, CHECKED, grad=False),
            in_pieces(model, CHECKED, cache),
            one_more(model, DenseCache(CHECKED), CHECKED - 1),
            Pass(cached_bytes(cache), 0),
        ]

    model = shaped(SMOLLM2, VOCABULARY, layers=CHECKED_LAYERS)
    real = passes(model)
    with without_data(model) as empty:
        empties = passes(empty)
    apart = [abs(one.peak - other.peak) + abs(one.kept - other.kept) for one, other in zip(real, empties, strict=True)]
    return {"without_data_gap": float(max(apart))}


def caches(seed: int) -> Figures:
    """Heads apart against grouped, eight bits against 32, four texts against one; two layers of SmolLM2."""
    apart = MultiHead(heads=SMOLLM2.keyed.heads, head_dim=SMOLLM2.keyed.head_dim)
    grouped = shaped(SMOLLM2, VOCABULARY, layers=CHECKED_LAYERS)
    models = {"mha": shaped(SMOLLM2, VOCABULARY, layers=CHECKED_LAYERS, attention=apart), "gqa": grouped}
    held = {}
    for name, model in models.items():
        fill(model, cache := DenseCache(LENGTHS[0]))
        held[name] = cached_bytes(cache)
    fill(grouped, many := DenseCache(LENGTHS[0]), ROWS)
    narrow, exact = Int8Cache(LENGTHS[0]), DenseCache(LENGTHS[0])
    ids = torch.randint(VOCABULARY, (1, LENGTHS[0]), generator=generator(seed, "handbook", "memory", "ids"))
    with torch.no_grad():
        wide, close = (grouped.hidden(ids, Places.causal(*ids.shape), cache) for cache in (exact, narrow))
    return {
        "mha_over_gqa": held["mha"] / held["gqa"],
        "fp32_over_int8": cached_bytes(exact) / cached_bytes(narrow),
        "int8_error": float((wide - close).norm() / wide.norm()),
        "rows_over_one": cached_bytes(many) / held["gqa"],
    }


def pages(seed: int) -> Figures:
    """Places that stay empty, and room for one more text, in one piece and in pages."""
    texts = lengths(seed, TEXTS, CONTEXT)
    contiguous, paged = wasted(texts, CONTEXT)
    hole, usable = holes(texts)
    return {"contiguous_waste": contiguous, "paged_waste": paged, "largest_hole": hole, "paged_usable": usable}


def on_a_gpu(f: Mapping[str, float]) -> Figures:
    """What PyTorch's allocator would hold on a GPU after a request of 2,048 tokens in fp16 with logits of all of them
    in fp32, the request's own tensors gone: reserved bytes, and the share of them that nobody uses."""
    weights = [HALF * parameter.numel() for parameter in shaped(SMOLLM2, VOCABULARY).parameters()]
    cache = [int(f["kv_2048"]) // (4 * SMOLLM2.layers)] * (2 * SMOLLM2.layers)
    request = [*cache, int(f["logits_full_2048"]), int(f["pieces_2048"]) // 2]
    total = reserved([*weights, *request])
    return {"gpu_reserved_mib": total / MIB, "gpu_idle_share": 1 - sum(weights) / total}
