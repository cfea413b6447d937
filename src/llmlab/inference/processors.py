"""What bends a distribution before it is drawn from: pure functions of logits, each [B, V] -> [B, V].

Shapes: B rows, V vocabulary. A token of probability 0 has the logit -inf.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

import torch
from torch import Tensor

# What a setting becomes where float32 would make 0 or infinity of it.
SMALLEST, LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max

# The mass mostly lies in few tokens, and sorting all of them is slow: so many are looked at first.
WIDTHS = (128, 2048, sys.maxsize)


def bias(logits_BV: Tensor, by_id: Mapping[int, float]) -> Tensor:
    """The bias of each id is added to its logit (OpenAI API, `logit_bias`)."""
    ids = torch.tensor(list(by_id), device=logits_BV.device)
    values = torch.tensor(list(by_id.values()), device=logits_BV.device, dtype=logits_BV.dtype)
    return logits_BV.index_add(1, ids, values.expand(len(logits_BV), -1))


def penalise_repetition(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Positive logits of tokens seen before are divided, negative ones multiplied (Keskar et al. 2019, 1909.05858).
    Those that were finite stay so, however large or small the penalty."""
    penalty = min(max(penalty, SMALLEST), LARGEST)
    lowered = torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    lowered = torch.where(logits_BV.isfinite(), lowered.clamp(-LARGEST, LARGEST), lowered)
    return torch.where(seen_BV, lowered, logits_BV)


def penalise_counts(logits_BV: Tensor, counts_BV: Tensor, presence: float, frequency: float) -> Tensor:
    """`presence` is subtracted once from what the answer has said, `frequency` as often as it was said (OpenAI API)."""
    return logits_BV - presence * (counts_BV > 0) - frequency * counts_BV


def ban(logits_BV: Tensor, banned_BV: Tensor) -> Tensor:
    """Where `banned_BV` is true: probability 0."""
    return logits_BV.masked_fill(banned_BV, float("-inf"))


def temper(logits_BV: Tensor, temperature: float) -> Tensor:
    """Divide by the temperature, the largest logit moved to 0 first so that a tiny temperature cannot overflow."""
    return (logits_BV - logits_BV.amax(-1, keepdim=True)) / min(max(temperature, SMALLEST), LARGEST)


def keep_top_k(logits_BV: Tensor, k: int) -> Tensor:
    """Only the k likeliest (Fan et al. 2018, arXiv 1805.04833), and those as likely as the k-th."""
    if k >= logits_BV.shape[-1]:
        return logits_BV
    least_B1 = logits_BV.topk(k).values[..., -1:]
    return logits_BV.masked_fill(logits_BV < least_B1, float("-inf"))


def keep_top_p(logits_BV: Tensor, p: float) -> Tensor:
    """Only the fewest likeliest whose mass reaches p, one at least (Holtzman et al. 2019, arXiv 1904.09751); of equally
    likely ones the lowest ids.

    Tokens less likely than (1 - p) / V have less than 1 - p in all, so none of them is kept, and few are left to sort.
    """
    if p >= 1:
        return logits_BV
    probs_BV = logits_BV.softmax(-1)
    least, p = 0.99 * (1 - p) / logits_BV.shape[-1], max(p, SMALLEST)  # for rounding; one at least
    kept_BV = torch.full_like(logits_BV, float("-inf"))
    for logits_V, probs_V, kept_V in zip(logits_BV, probs_BV, kept_BV, strict=True):
        near_N = (probs_V >= least).nonzero()[:, 0]
        mass_N, order_N = probs_V[near_N].sort(descending=True, stable=True)
        chosen_N = near_N[order_N[mass_N.cumsum(0) - mass_N < p]]
        kept_V[chosen_N] = logits_V[chosen_N]
    return kept_BV


def keep_min_p(logits_BV: Tensor, p: float) -> Tensor:
    """Only what is at least p times as likely as the likeliest (Nguyen et al. 2024, arXiv 2407.01082)."""
    probs_BV = logits_BV.softmax(-1)
    return logits_BV.masked_fill(probs_BV < p * probs_BV.amax(-1, keepdim=True), float("-inf"))


def keep_typical(logits_BV: Tensor, p: float) -> Tensor:
    """Only the fewest tokens whose mass reaches p, those first whose surprise lies nearest to the entropy, and those
    as near as the last of them (Meister et al. 2022, arXiv 2202.00666). The likeliest token may be left out."""
    logprobs_BV = logits_BV.log_softmax(-1)
    entropy_B1 = -(logprobs_BV.exp() * logprobs_BV).nansum(-1, keepdim=True)  # 0 * -inf is NaN, and means 0
    distance_BV = (-logprobs_BV - entropy_B1).abs()
    vocabulary = logits_BV.shape[-1]
    for width in WIDTHS:
        nearest = distance_BV.topk(min(width, vocabulary), largest=False)
        mass_BW = logprobs_BV.gather(-1, nearest.indices).exp().cumsum(-1)
        if width >= vocabulary or bool((mass_BW[..., -1] >= p).all()):
            break
    last_B1 = (mass_BW < p).sum(-1, keepdim=True).clamp(max=nearest.values.shape[-1] - 1)
    return logits_BV.masked_fill(distance_BV > nearest.values.gather(-1, last_B1), float("-inf"))
