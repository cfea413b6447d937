"""How like people's texts other texts are, as sets: MAUVE (Pillutla et al. 2021, arXiv 2102.01454), the light version.

Vectors of both sets are put into clusters together; the two histograms P and Q are then held against every mixture of
them. Text that no person would write costs KL(Q | R), what people write and the model never does costs KL(P | R); the
area under the curve of exp(-c KL) over all mixtures R is 1 where both are one distribution and near 0 where they share
nothing. Light: a small sentence encoder's vectors in place of a large language model's states, tens of texts in place
of thousands, and half a count added to every cluster, which so few texts need (Pillutla et al. 2023, arXiv 2212.14578).
So its values are to be compared with one another only, at the same numbers of texts and clusters; `baseline` values, of
other text of people, say how near to 1 they can come.

N texts, D width, K clusters, R mixtures.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmlab.errors import InputError
from llmlab.runtime import generator

Floats = NDArray[np.float64]

SCALE, MIXTURES = 5.0, 25  # the paper's c and the number of its mixtures
ADDED = 0.5
STARTS, ROUNDS = 5, 100  # of k-means


def mauve(said_ND: Tensor, human_ND: Tensor, clusters: int, seed: int = 0) -> float:
    """Between 0 and 1. Errors: InputError for an empty set, or fewer vectors than clusters."""
    if not len(said_ND) or not len(human_ND):
        raise InputError("mauve", "one of the sets of texts is empty")
    if clusters < 2 or len(said_ND) + len(human_ND) < clusters:
        count = len(said_ND) + len(human_ND)
        raise InputError("mauve.clusters", f"{clusters} clusters of {count} texts", f"from 2 to {count}")
    of_N = kmeans(torch.cat([said_ND, human_ND]).double(), clusters, seed)
    histograms = [
        np.bincount(own.numpy(), minlength=clusters) + ADDED for own in (of_N[: len(said_ND)], of_N[len(said_ND) :])
    ]
    said_K, human_K = (counts / counts.sum() for counts in histograms)
    return area(human_K, said_K)


def area(p_K: Floats, q_K: Floats) -> float:
    """Under the curve of two histograms without empty bins, both axes taken as the base in turn, as the authors do."""
    weight_R1 = np.linspace(0, 1, MIXTURES + 2)[1:-1, None]
    mixed_RK = weight_R1 * p_K + (1 - weight_R1) * q_K
    x_R, y_R = (np.exp(-SCALE * (of_K * np.log(of_K / mixed_RK)).sum(1)) for of_K in (q_K, p_K))
    # From (1, 0), where the mixture is Q, to (0, 1), where it is P.
    x, y = np.concatenate([[1.0], x_R, [0.0]]), np.concatenate([[0.0], y_R, [1.0]])
    return float((np.trapezoid(y[::-1], x[::-1]) + np.trapezoid(x, y)) / 2)


def kmeans(x_ND: Tensor, clusters: int, seed: int) -> Tensor:
    """int64 [N]: the cluster of each row, by Lloyd's rounds from k-means++ (Arthur & Vassilvitskii 2007); of some
    starts the one with the smallest squares."""
    best: tuple[float, Tensor] | None = None
    for start in range(STARTS):
        centre_KD = _plusplus(x_ND, clusters, generator(seed, "mauve", start))
        of_N = torch.cdist(x_ND, centre_KD).argmin(1)
        for _ in range(ROUNDS):
            sums_KD = torch.zeros_like(centre_KD).index_add_(0, of_N, x_ND)
            count_K1 = torch.bincount(of_N, minlength=clusters)[:, None]
            centre_KD = torch.where(count_K1 > 0, sums_KD / count_K1.clamp(min=1), centre_KD)
            distance_NK, before_N = torch.cdist(x_ND, centre_KD), of_N
            of_N = distance_NK.argmin(1)
            if torch.equal(of_N, before_N):
                break
        squares = float((x_ND - centre_KD[of_N]).square().sum())
        if best is None or squares < best[0]:
            best = squares, of_N
    assert best is not None
    return best[1]


def _plusplus(x_ND: Tensor, clusters: int, source: torch.Generator) -> Tensor:
    """float [K, D]: rows drawn one after another, each with the square of its distance from those drawn before."""
    chosen = [int(torch.randint(len(x_ND), (1,), generator=source))]
    for _ in range(clusters - 1):
        squares_N = torch.cdist(x_ND, x_ND[chosen]).amin(1).square()
        weights_N = squares_N if bool((squares_N > 0).any()) else torch.ones_like(squares_N)
        chosen.append(int(torch.multinomial(weights_N, 1, generator=source)))
    return x_ND[chosen]
