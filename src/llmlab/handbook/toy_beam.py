"""Beam search written out, and all texts of a toy vocabulary beside it. Sums of log-probabilities, no penalty for
length, all texts of one length: with as many beams as there are texts nothing can be lost.

B beams, T tokens, V vocabulary, L new tokens.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from llmlab.model.transformer import Transformer


def scores(model: Transformer, prompt: list[int], texts_BT: Tensor) -> Tensor:
    """[B]: the log-probability of each text after the prompt."""
    start_BT = torch.tensor([prompt]).expand(len(texts_BT), -1)
    ids_BT = torch.cat([start_BT, texts_BT], 1)
    logprobs_BTV: Tensor = model(ids_BT)[:, len(prompt) - 1 : -1].log_softmax(-1)
    return logprobs_BTV.gather(-1, texts_BT[..., None])[..., 0].sum(1)


def beam(model: Transformer, prompt: list[int], length: int, width: int) -> tuple[list[int], float]:
    """The best of `width` beginnings that are kept at each step (Lowerre 1976), with its log-probability."""
    texts_BT, told_B = torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1)
    for _ in range(length):
        start_BT = torch.tensor([prompt]).expand(len(texts_BT), -1)
        next_BV = model(torch.cat([start_BT, texts_BT], 1))[:, -1].log_softmax(-1)
        all_BV = told_B[:, None] + next_BV
        told_B, place_B = all_BV.flatten().topk(min(width, all_BV.numel()))
        vocabulary = next_BV.shape[-1]
        texts_BT = torch.cat([texts_BT[place_B // vocabulary], place_B[:, None] % vocabulary], 1)
    return texts_BT[0].tolist(), float(told_B[0])


def exhaustive(model: Transformer, prompt: list[int], length: int) -> tuple[list[int], float]:
    """The likeliest of all V^L texts, with its log-probability."""
    texts_BT = torch.tensor(list(product(range(model.vocab_size), repeat=length)))
    told_B = scores(model, prompt, texts_BT)
    best = int(told_B.argmax())
    return texts_BT[best].tolist(), float(told_B[best])
