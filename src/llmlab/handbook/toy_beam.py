"""Beam search on a toy vocabulary, and all of its texts beside it: with as many beams as there are texts nothing can be
lost. Texts are of one length and scored by their sum of log-probabilities, or end with a stop token and are scored by
that sum over length^penalty.

B texts, T tokens, V vocabulary, L new tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from llmlab.inference.beam import Beam
from llmlab.inference.front import DecoderFront
from llmlab.inference.sampling import Sampling
from llmlab.model.transformer import Transformer


def scores(model: Transformer, prompt: list[int], texts_BT: Tensor) -> Tensor:
    """[B]: the log-probability of each text after the prompt."""
    return _each_scores(model, prompt, texts_BT).sum(1)


def _each_scores(model: Transformer, prompt: list[int], texts_BT: Tensor) -> Tensor:
    """[B, T]: the log-probability of each token of each text."""
    start_BT = torch.tensor([prompt]).expand(len(texts_BT), -1)
    ids_BT = torch.cat([start_BT, texts_BT], 1)
    logprobs_BTV: Tensor = model(ids_BT)[:, len(prompt) - 1 : -1].log_softmax(-1)
    return logprobs_BTV.gather(-1, texts_BT[..., None])[..., 0]


def beam(model: Transformer, prompt: list[int], length: int, width: int) -> tuple[list[int], float]:
    """The best of `width` beginnings that are kept at each step, with its log-probability."""
    search = Beam(beams=width, length_penalty=0.0)
    ((best, *_),) = search.find(DecoderFront(model), [prompt], Sampling(max_new_tokens=length), (), [0])
    return best.ids, best.score


def exhaustive(model: Transformer, prompt: list[int], length: int) -> tuple[list[int], float]:
    """The likeliest of all V^L texts, with its log-probability."""
    texts_BT = _all_texts(model, length)
    told_B = scores(model, prompt, texts_BT)
    best = int(told_B.argmax())
    return texts_BT[best].tolist(), float(told_B[best])


def beam_to_stop(
    model: Transformer, prompt: list[int], length: int, width: int, stop: int, penalty: float
) -> tuple[list[int], float]:
    """The best text that ends with `stop` or has `length` tokens, with its score; nothing is given up early."""
    search = Beam(beams=width, length_penalty=penalty, early_stopping="never")
    ((best, *_),) = search.find(DecoderFront(model), [prompt], Sampling(max_new_tokens=length), (stop,), [0])
    return best.ids, best.score


def exhaustive_to_stop(
    model: Transformer, prompt: list[int], length: int, stop: int, penalties: Sequence[float]
) -> list[tuple[list[int], float]]:
    """For each penalty the best of all texts that end with `stop` or have `length` tokens, with its score."""
    texts_BT = _all_texts(model, length)
    stops_BT = texts_BT.eq(stop)
    lengths_B = torch.where(stops_BT.any(1), stops_BT.int().argmax(1) + 1, length)
    sums_B = _each_scores(model, prompt, texts_BT).cumsum(1).gather(1, lengths_B[:, None] - 1)[:, 0]
    found = []
    for penalty in penalties:
        told_B = sums_B / lengths_B**penalty
        best = int(told_B.argmax())
        found.append((texts_BT[best, : int(lengths_B[best])].tolist(), float(told_B[best])))
    return found


def _all_texts(model: Transformer, length: int) -> Tensor:
    return torch.tensor(list(product(range(model.vocab_size), repeat=length)))
