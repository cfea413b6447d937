"""Many texts to one vector each: sorted by length, so that little of a batch is padding.

N texts, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llmlab.inference.engine import without_dropout
from llmlab.model.places import Places
from llmlab.model.pooling import Pooling
from llmlab.model.transformer import Transformer

# Tokens of one batch, padding included: few enough that a small model's activations stay in a cache.
BATCH_TOKENS = 4096


@torch.inference_mode()
def embed(model: Transformer, texts: Sequence[Sequence[int]], pooling: Pooling) -> Tensor:
    """float32 [N, D] for texts of ids, special tokens included, none of them empty. Vectors do not depend on the
    texts beside, but for float rounding."""
    device = next(model.parameters()).device
    out_ND = torch.empty(len(texts), model.architecture.dim)
    with without_dropout(model):
        for rows in _batches([len(ids) for ids in texts]):
            sizes = [len(texts[row]) for row in rows]
            width = max(sizes)
            padded = [[*texts[row], *[0] * (width - size)] for row, size in zip(rows, sizes, strict=True)]
            at = Places.of_lengths(sizes, width, device=device)
            at = at if model.architecture.mask.one_way else at.bidirectional()
            ids_BT = torch.tensor(padded, device=device)
            states = model.encode(ids_BT, at).states if model.encoder is not None else model.hidden(ids_BT, at)
            out_ND[rows] = pooling(states, at).cpu()
    return out_ND


def _batches(sizes: Sequence[int]) -> list[list[int]]:
    """Rows by length, the longest first, as many at once as fit."""
    order = sorted(range(len(sizes)), key=lambda row: (-sizes[row], row))
    batches: list[list[int]] = []
    for row in order:
        if batches and (len(batches[-1]) + 1) * sizes[batches[-1][0]] <= BATCH_TOKENS:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
