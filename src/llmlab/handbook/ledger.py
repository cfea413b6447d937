"""The memory of inference as a ledger: what each thing takes, counted on the tensors themselves.

Lengths that would take minutes and gigabytes are run on tensors without data (PyTorch's FakeTensorMode): every
operation makes its result with its true size and type, and nothing is computed. T tokens, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from llmlab.inference.cache import DenseCache
from llmlab.inference.engine import PREFILL_COLUMNS
from llmlab.inference.int8_cache import Int8Cache
from llmlab.inference.pages import PAGE, Pages
from llmlab.interpret.live_bytes import LiveBytes
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture, Transformer
from llmlab.runtime import generator


@contextlib.contextmanager
def without_data(model: Transformer) -> Iterator[Transformer]:
    """The same model with empty tensors in place of its weights, in a mode where all tensors are."""
    mode = FakeTensorMode()
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = nn.Parameter(mode.from_tensor(weight.detach()))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = mode.from_tensor(buffer)
    with mode:
        yield model


@dataclass(frozen=True)
class Pass:
    """Bytes of one pass: the most that was alive beside weights, ids and cache, and what stayed beside the output."""

    peak: int
    kept: int


def whole(model: Transformer, length: int, grad: bool) -> Pass:
    """A text read at once without a cache, with or without a graph for gradients."""
    ids = torch.zeros(1, length, dtype=torch.int64)
    at = Places.causal(1, length)
    with torch.set_grad_enabled(grad), LiveBytes(known(model, ids, at)) as live:
        hidden = model.hidden(ids, at)
        return Pass(live.peak, live.bytes - hidden.nbytes)


def in_pieces(model: Transformer, length: int, cache: DenseCache) -> Pass:
    """A text read as the engine does: in pieces, into a cache, whose own bytes do not count. The first piece and the
    last two are run: between them every piece is as long as these and sees fewer tokens than the last but one."""
    ids, at = torch.zeros(1, length, dtype=torch.int64), Places.causal(1, length)
    fill(model, cache)
    with torch.no_grad(), LiveBytes(known(model, ids, at, cache)) as live:
        starts = range(0, length, PREFILL_COLUMNS)
        for start in sorted({0, *starts[-2:]}):
            cache.length = start  # what stands in the columns before it changes no size
            piece = slice(start, start + PREFILL_COLUMNS)
            hidden = model.hidden(ids[:, piece], at[:, piece], cache)
        return Pass(live.peak, live.bytes - hidden.nbytes)


def one_more(model: Transformer, cache: DenseCache, before: int) -> Pass:
    """One token after so many others."""
    fill(model, cache)
    cache.length = before
    ids, at = torch.zeros(1, 1, dtype=torch.int64), Places.causal(1, before + 1)[:, before:]
    with torch.no_grad(), LiveBytes(known(model, ids, at, cache)) as live:
        hidden = model.hidden(ids, at, cache)
        return Pass(live.peak, live.bytes - hidden.nbytes)


def known(model: Transformer, ids: Tensor, at: Places, cache: DenseCache | None = None) -> list[Tensor]:
    """What is there before a pass: weights, ids, places, cache."""
    cached = [] if cache is None else [*cache._keys.values(), *cache._values.values(), *_parts(cache._places)]
    return [*model.parameters(), *model.buffers(), ids, *_parts(at), *cached]


def _parts(places: Places | None) -> list[Tensor]:
    return [] if places is None else [places.position, places.order, places.document]


@torch.no_grad()
def fill(model: Transformer, cache: DenseCache | Int8Cache, rows: int = 1) -> None:
    """Make a cache's buffers by one token of each row, and forget the token."""
    model.hidden(torch.zeros(rows, 1, dtype=torch.int64), Places.causal(rows, 1), cache)
    for dense in _dense(cache):
        dense.trim(0)


def cached_bytes(cache: DenseCache | Int8Cache) -> int:
    """Bytes of the keys and values that a cache holds, as their tensors say."""
    buffers = [part for dense in _dense(cache) for part in (dense._keys, dense._values)]
    return sum(tensor.untyped_storage().nbytes() for part in buffers for tensor in part.values())


def _dense(cache: DenseCache | Int8Cache) -> Sequence[DenseCache]:
    return [cache.codes, cache.scales] if isinstance(cache, Int8Cache) else [cache]


# ---------------------------------------------------------------- room for many texts


def lengths(seed: int, count: int, longest: int) -> list[int]:
    """Lengths of texts from 16 to `longest` tokens, each doubling as likely as the next."""
    drawn = torch.rand(count, generator=generator(seed, "handbook", "memory", "lengths"))
    return [int(16 * (longest / 16) ** float(share)) for share in drawn]


def wasted(texts: Sequence[int], context: int) -> tuple[float, float]:
    """The share of reserved places that stay empty: where each text reserves the whole context, and in pages."""
    pages = Pages(sum(-(-text // PAGE) for text in texts))
    taken = sum(1 for text in texts for _ in range(-(-text // PAGE)) if pages.take() is not None)
    return 1 - sum(texts) / (context * len(texts)), 1 - sum(texts) / (PAGE * taken)


def holes(texts: Sequence[int]) -> tuple[float, float]:
    """After every other text has left: the longest new text that finds room, as a share of all free places, where a
    text must lie in one piece and where it lies in pages."""
    pages = Pages(sum(-(-text // PAGE) for text in texts))
    held: list[list[int]] = []
    for text in texts:
        held.append([page for _ in range(-(-text // PAGE)) if (page := pages.take()) is not None])
    for leaving in held[::2]:
        pages.give_back(leaving)
    free, found = pages.free, 0
    while pages.take() is not None:
        found += 1
    return max(len(leaving) for leaving in held[::2]) / free, found / free


# ---------------------------------------------------------------- a GPU's allocator, on paper

MIB = 1 << 20


def reserved(sizes: Sequence[int]) -> int:
    """Bytes that PyTorch's caching allocator takes from a GPU for tensors alive together, by the constants of
    c10/cuda/CUDACachingAllocator: up to 1 MiB from segments of 2 MiB, under 10 MiB from segments of 20 MiB, larger
    ones by themselves, rounded up to 2 MiB."""
    total = 0
    for segment, low, high in ((2 * MIB, 0, MIB), (20 * MIB, MIB, 10 * MIB)):
        room = 0
        for size in sorted(-(-size // 512) * 512 for size in sizes if low < size <= high - (high > MIB)):
            if size > room:
                total, room = total + segment, segment
            room -= size
    return total + sum(-(-size // (2 * MIB)) * 2 * MIB for size in sizes if size >= 10 * MIB)


def shaped(a: Architecture, vocabulary: int, **changed: object) -> Transformer:
    """A model of a shape; what its weights are changes no size."""
    model: Transformer = a.model_copy(update=changed).build(vocabulary, 0).eval()
    return model
