"""A made-up scale ladder: tokens that get better by a power law and nothing else, scored by harsh and by mild marks.

S sizes, N problems or items, L tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from llmlab.handbook.measures import draw
from llmlab.runtime import generator

SIZES = tuple(10 ** (4 + half / 2) for half in range(9))  # parameters
EXPONENT, FIRST = 0.5, 2.0  # of the power law; nats a token of the smallest
TESTED, LENGTHS = 500, (1, 2, 4, 8, 16)
OPTIONS, SPREAD = 4, 0.3  # of the multiple choice: options, and how much items differ in hardness
SETTINGS = {"ladder": [len(SIZES), EXPONENT, FIRST, TESTED, *LENGTHS, OPTIONS, SPREAD]}


def nats(size: float) -> float:
    """The loss of a token by the power law; e to minus it is how likely the token is right."""
    return FIRST * math.pow(SIZES[0] / size, EXPONENT)


def right(seed: int, size: float) -> Tensor:
    """bool [N, L]: whether each token of each answer comes out right, all of them independent."""
    source = generator(seed, "handbook", "ladder", size)
    return torch.rand(TESTED, LENGTHS[-1], generator=source, dtype=torch.float64) < math.exp(-nats(size))


def exact(seed: int, length: int) -> list[float]:
    """By size: the measured share of answers whose first `length` tokens are all right."""
    return [float(right(seed, size)[:, :length].all(1).double().mean()) for size in SIZES]


def multiple_choice(seed: int) -> dict[str, list[float]]:
    """By size: how likely the right option is, Brier's score, and the share of items in which it is the likeliest. Its
    logit rises by as much from each size to the next; those of the others stay at 0."""
    offset_N = SPREAD * draw(seed, "ladder.items", TESTED)
    told: dict[str, list[float]] = {"chance": [], "brier": [], "grade": []}
    for logit in torch.linspace(-2, 2.25, len(SIZES), dtype=torch.float64):
        logits = torch.zeros(TESTED, OPTIONS, dtype=torch.float64)
        logits[:, 0] = logit + offset_N
        chances = logits.softmax(1)
        truth = torch.eye(OPTIONS, dtype=torch.float64)[0]
        told["chance"].append(float(chances[:, 0].mean()))
        told["brier"].append(float((chances - truth).square().sum(1).mean()))
        told["grade"].append(float((chances.argmax(1) == 0).double().mean()))
    return told


def jump(values: Sequence[float]) -> float:
    """The largest step between neighbours, as a share of the whole way from the first to the last."""
    steps = [abs(b - a) for a, b in pairwise(values)]
    return max(steps) / abs(values[-1] - values[0])


def crossing(places: Sequence[float], values: Sequence[float], level: float = 0.5) -> float:
    """The log10 of the place at which rising values first reach `level`, straight lines between; the last place where
    they do not."""
    logs = [math.log10(place) for place in places]
    if values[0] >= level:
        return logs[0]
    for (x, a), (y, b) in pairwise(zip(logs, values, strict=True)):
        if b >= level:
            return x + (y - x) * (level - a) / (b - a)
    return logs[-1]


def unseen(exact_S: Sequence[float], limit: float) -> int:
    """The last place before the mark first reaches `limit`; -1 where it does so at once."""
    return next((place for place, value in enumerate(exact_S) if value >= limit), len(exact_S)) - 1


def fallen(loss_S: Sequence[float], place: int) -> float:
    """How much of its whole fall the loss has behind it there; 0 before the first place."""
    return 0.0 if place < 0 else (loss_S[0] - loss_S[place]) / (loss_S[0] - loss_S[-1])


def explained(measured: Sequence[float], predicted: Sequence[float]) -> float:
    """R squared of predictions taken as they are: 1 minus squared errors over squared deviations from the mean."""
    mean = sum(measured) / len(measured)
    errors = sum((a - b) ** 2 for a, b in zip(measured, predicted, strict=True))
    return 1 - errors / sum((a - mean) ** 2 for a in measured)
