"""Beam search on a toy vocabulary, and all of its texts beside it. Sums of log-probabilities, no penalty for length,
all texts of one length: with as many beams as there are texts nothing can be lost.

B texts, T tokens, V vocabulary, L new tokens.
"""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from llmlab.inference.beam import Beam
from llmlab.inference.front import DecoderFront
from llmlab.inference.sampling import Sampling
from llmlab.model.transformer import Transformer


def scores(model: Transformer, prompt: list[int], texts_BT: Tensor) -> Tensor:
    """[B]: the log-probability of each text after the prompt."""
    start_BT = torch.tensor([prompt]).expand(len(texts_BT), -1)
    ids_BT = torch.cat([start_BT, texts_BT], 1)
    logprobs_BTV: Tensor = model(ids_BT)[:, len(prompt) - 1 : -1].log_softmax(-1)
    return logprobs_BTV.gather(-1, texts_BT[..., None])[..., 0].sum(1)


def beam(model: Transformer, prompt: list[int], length: int, width: int) -> tuple[list[int], float]:
    """The best of `width` beginnings that are kept at each step, with its log-probability."""
    search = Beam(beams=width, length_penalty=0.0)
    ((best, *_),) = search.find(DecoderFront(model), [prompt], Sampling(max_new_tokens=length), (), [0])
    return best.ids, best.score


def exhaustive(model: Transformer, prompt: list[int], length: int) -> tuple[list[int], float]:
    """The likeliest of all V^L texts, with its log-probability."""
    texts_BT = torch.tensor(list(product(range(model.vocab_size), repeat=length)))
    told_B = scores(model, prompt, texts_BT)
    best = int(told_B.argmax())
    return texts_BT[best].tolist(), float(told_B[best])
