"""Attention tile by tile with a running softmax: the same answer, and no n x n scores anywhere (Milakov & Gimelshein
2018, arXiv 1805.02867; Dao et al. 2022, FlashAttention, arXiv 2205.14135, algorithm 1).

B rows, H heads, T queries, S keys, K head width, I queries and J keys of a tile.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TILE = 64


def tiled(
    q_BHTK: Tensor,
    k_BHSK: Tensor,
    v_BHSK: Tensor,
    causal: bool = True,
    window: int | None = None,
    tile: int = TILE,
) -> Tensor:
    """[B, H, T, K]. Query i stands at key i + S - T; `causal` sees itself and what came before, of that with `window`
    so many tokens. Beside its inputs and its answer it holds a few tiles: tile x tile scores, never T x S."""
    queries, keys = q_BHTK.shape[2], k_BHSK.shape[2]
    out_BHTK, scale = torch.empty_like(q_BHTK), 1 / math.sqrt(q_BHTK.shape[3])
    for top in range(0, queries, tile):
        q = q_BHTK[:, :, top : top + tile] * scale
        at_I1 = torch.arange(top, top + q.shape[2])[:, None] + keys - queries
        most = q.new_full((*q.shape[:3], 1), -torch.inf)  # of the scores so far, by which all are shifted
        total, mixed = torch.zeros_like(most), torch.zeros_like(q)
        first = 0 if window is None else max(0, int(at_I1[0]) - window + 1)
        for left in range(first, int(at_I1[-1]) + 1 if causal else keys, tile):
            k, v = k_BHSK[:, :, left : left + tile], v_BHSK[:, :, left : left + tile]
            back_IJ = at_I1 - torch.arange(left, left + k.shape[2])
            hidden_IJ = (back_IJ < 0) & causal | (back_IJ >= (window or keys + 1))
            scores = (q @ k.mT).masked_fill(hidden_IJ, -torch.inf)
            higher = torch.maximum(most, scores.amax(-1, keepdim=True))
            finite = higher.masked_fill(higher == -torch.inf, 0.0)  # a tile of which nothing is seen changes nothing
            weights, shrink = (scores - finite).exp(), (most - finite).exp()
            total, mixed, most = total * shrink + weights.sum(-1, keepdim=True), mixed * shrink + weights @ v, higher
        out_BHTK[:, :, top : top + tile] = mixed / total
    return out_BHTK
