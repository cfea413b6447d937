"""Loss beyond the trained length, on the same tokens at every length: train short, test long (Press et al. 2021).

Cutting a text into ever longer windows that do not overlap flatters length: fewer of the scored tokens then stand at a
window's start, where there is little context (the "early token curse", arXiv 2108.12409, appendix B). So the scored
tokens are fixed here: blocks of `length` targets of the held-out text. At k times the trained length each block is the
end of one window of k * length tokens, so every scored token sees at least (k - 1) * length tokens before it and only
the context changes from one k to the next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from llmlab.data.corruption import FOLLOWING, held_out_noise
from llmlab.data.pack import Isolated, Stream
from llmlab.data.shards import TokenShards
from llmlab.errors import InputError
from llmlab.inference.engine import without_dropout
from llmlab.objectives.kind import byte_lengths
from llmlab.objectives.language import NextToken
from llmlab.tokenization.tokenizer import Tokenizer

Int64 = npt.NDArray[np.int64]

MULTIPLES = (1, 2, 4, 8)
SCORED = 8192  # tokens at most, spread evenly over the held-out text
_CELLS = 1 << 22  # of the attention mask of a batch, heads aside


def block_ends(shards: TokenShards, length: int, multiples: Sequence[int] = MULTIPLES) -> Int64:
    """Where in the corpus the scored blocks end, int64 [N]: each has the longest window before it in its document.

    They depend on the text and `length` alone, not on which multiples are asked. Errors: InputError where no document
    is long enough.
    """
    longest = max(multiples) * length
    ends = [
        np.arange(start + longest, end + 1, length)
        for start, end in zip(shards.starts[:-1], shards.starts[1:], strict=True)
    ]
    found: Int64 = np.concatenate(ends).astype(np.int64)
    if not len(found):
        most = int(np.diff(shards.starts).max())
        raise InputError(
            "held-out text",
            f"its longest document has {most} tokens, {max(multiples)} times the trained length are {longest}",
            "cut the text into larger documents (piece of text.sources), or train on shorter rows",
        )
    most_blocks = max(1, SCORED // length)
    if len(found) > most_blocks:
        found = found[np.linspace(0, len(found) - 1, most_blocks).round().astype(np.int64)]
    return found


def bits_beyond(
    model: Any, tokenizer: Tokenizer, shards: TokenShards, length: int, multiples: Sequence[int] = MULTIPLES
) -> dict[int, float | InputError]:
    """Bits per byte of the scored blocks in windows of k * length, for each k of `multiples`, float32.

    A model that refuses positions beyond those it knows has its refusal in place of a number.
    """
    ends = block_ends(shards, length)
    scored = shards.take(ends[:, None] - length + np.arange(length))
    size = int(byte_lengths(tokenizer)[scored].sum())
    found: dict[int, float | InputError] = {}
    for multiple in multiples:
        try:
            found[multiple] = _nats(model, shards, ends, length, multiple) / math.log(2) / size
        except InputError as refusal:
            if multiple == 1:
                raise
            found[multiple] = refusal
    return found


def _nats(model: Any, shards: TokenShards, ends: Int64, length: int, multiple: int) -> float:
    window = multiple * length
    stream = Stream(shards, np.arange(shards.documents), window, Isolated())
    objective, most, total = NextToken(), max(1, min(64, _CELLS // window**2)), 0.0
    with torch.inference_mode(), without_dropout(model):
        for first in range(0, len(ends), most):
            starts = ends[first : first + most] - window
            rows = stream.rows(starts, np.full(len(starts), window - length))
            batch = FOLLOWING.learn(rows, held_out_noise(FOLLOWING.planes, window, starts))
            total += float(objective(model, batch).sums["cross_entropy"])
    return total
