"""Where a long text is cut: spans with overlap, in whatever unit lengths are counted (tokens, words, characters).

The law of cutting. Spans begin every `stride = size - overlap` units. A fact of w units that begins anywhere, evenly,
lies whole in no span with probability (w - 1 - overlap) / stride, between 0 and 1: without overlap (w - 1) / size, and
never where overlap >= w - 1. So overlap buys whole facts, and costs `size / stride` times the work.

N spans, M places to cut at.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from llmlab.errors import InputError

Int64 = npt.NDArray[np.int64]


def check(size: int, overlap: int) -> None:
    """Errors: InputError for a size below 1, a negative overlap, and an overlap that leaves no way forward."""
    if size < 1:
        raise InputError("size", f"{size} units hold nothing", "at least 1")
    if overlap < 0:
        raise InputError("overlap", f"{overlap} is negative", "0 for none")
    if overlap >= size:
        raise InputError("overlap", f"{overlap} is not below the size of {size}: no chunk would go forward", "a fifth")


def spans(length: int, size: int, overlap: int = 0) -> Int64:
    """[N, 2]: first unit and the one after the last of each chunk; together they cover `length` units, in order.

    All are `size` long but the last, which may be shorter; none lies whole inside another. No chunk of no text.
    Errors: as `check`.
    """
    check(size, overlap)
    if length < 1:
        return np.zeros((0, 2), np.int64)
    stride = size - overlap
    count = 1 + max(0, -(-(length - size) // stride))
    start_N = stride * np.arange(count, dtype=np.int64)
    return np.stack([start_N, np.minimum(start_N + size, length)], axis=1)


def split_probability(width: int, size: int, overlap: int = 0) -> float:
    """How often a fact of `width` units, which begins at any unit as likely, lies whole in no chunk: the law above."""
    check(size, overlap)
    return min(1.0, max(0.0, (width - 1 - overlap) / (size - overlap)))


def whole(spans_N2: Int64, start_M: Int64, width: int) -> npt.NDArray[np.bool_]:
    """[M]: whether the `width` units from each of these places on lie whole in one of the (ordered) spans."""
    # Of the spans that begin at or before a place, the last reaches furthest.
    last_M = np.searchsorted(spans_N2[:, 0], start_M, side="right") - 1
    return np.asarray((last_M >= 0) & (start_M + width <= spans_N2[np.maximum(last_M, 0), 1]))


def spans_at(cuts_M: Int64, length: int, size: int, overlap: int = 0) -> Int64:
    """[N, 2] as `spans`, but each begins and ends at one of `cuts_M` (sorted places, as ends of sentences) where one is
    in reach: ends at the last within `size`, begins at the first within `overlap` before the last end. Where none is,
    it is cut through. So a chunk is at most `size` long, and reads well.

    Errors: as `check`.
    """
    check(size, overlap)
    cuts = np.unique(np.concatenate([cuts_M, [0, length]])).clip(0, length)
    found, start = list[tuple[int, int]](), 0
    while start < length:  # one turn a chunk
        end = int(cuts[np.searchsorted(cuts, min(start + size, length), side="right") - 1])
        if end <= start or (found and end <= found[-1][1]):
            end = min(start + size, length)
        found.append((start, end))
        if end == length:
            break
        after = int(cuts[np.searchsorted(cuts, end - overlap)])
        start = after if start < after <= end else max(end - overlap, start + 1)
    return np.array(found, np.int64).reshape(-1, 2)
