"""What training holds against repetition: pure functions of logits, of tokens and of rows.

B rows, T tokens, N learnt positions, R rows of copies, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llmlab.data.corruption import Bool, Int64, Noise
from llmlab.model.places import Places
from llmlab.objectives.corrupt import pieces

CERTAIN = 1.0 - 1e-5  # a probability above it is taken for it, so that no logarithm of 0 is learnt from

# ---------------------------------------------------------------- unlikelihood


def candidates(ids_BT: Tensor, targets_BT: Tensor, at: Places) -> Tensor:
    """bool [B, T, T]: whether token s is a candidate at t: what t sees of its own document, each id once (where it
    stands first), and not what is to come next there (Welleck et al. 2020, equation 5)."""
    alike_BTT = at.document[:, :, None] == at.document[:, None, :]
    equal_BTT = (ids_BT[:, :, None] == ids_BT[:, None, :]) & alike_BTT
    earlier_BTT = at.order[:, None, :] < at.order[:, :, None]
    first_BT = ~(equal_BTT & earlier_BTT).any(-1)
    seen_BTT = alike_BTT & (at.order[:, None, :] <= at.order[:, :, None])
    return seen_BTT & first_BT[:, None, :] & (ids_BT[:, None, :] != targets_BT[:, :, None])


def unlikelihood(logits_NV: Tensor, ids_NT: Tensor, candidates_NT: Tensor) -> Tensor:
    """[N]: the sum of -log(1 - p(c)) over the candidates of each position. `ids_NT` is the row that it stands in.

    Probabilities are taken at the T tokens of the row and not over the vocabulary, so it costs N T numbers beside
    the N V of the log-softmax, which cross entropy alone would not have kept.
    """
    logprob_NT = logits_NV.float().log_softmax(-1).gather(-1, ids_NT)
    away_NT = torch.log1p(-logprob_NT.exp().clamp(max=CERTAIN))
    return -torch.where(candidates_NT, away_NT, 0.0).sum(-1)


# ---------------------------------------------------------------- label smoothing


def uniform(logits_NV: Tensor) -> Tensor:
    """[N]: the cross entropy with a target that is any token, all as likely (Szegedy et al. 2015, section 7)."""
    return -logits_NV.float().log_softmax(-1).mean(-1)


# ---------------------------------------------------------------- sentences said again


class Copied(NamedTuple):
    """Rows in which one sentence goes on and on. `source_BT`: of each token, the column of the row that it was taken
    from. `period_B`: how many tokens the sentence has; 0: the row is as it was. `first_B`: where the second copy
    begins."""

    source_BT: Int64
    period_B: Int64
    first_B: Int64


def copied(document_BT: Int64, ends_BT: Bool, noise_BT: Noise, chosen_B: Bool) -> Copied:
    """Of each chosen row a sentence is drawn by the noise, and from its second token on the row is nothing but it.

    What stood before stays. A sentence begins where a document does or behind a token with which one ends, and must
    have two tokens at least and end early enough for a whole second copy; a row without such a one stays as it was.
    """
    length = document_BT.shape[1]
    begins_BT = np.ones_like(ends_BT)
    begins_BT[:, 1:] = ends_BT[:, :-1] | (document_BT[:, 1:] != document_BT[:, :-1])
    sentence = pieces(np.where(document_BT >= 0, np.cumsum(begins_BT, 1), -1))
    column_BT = np.broadcast_to(np.arange(length), document_BT.shape)
    whole_BT = (sentence.number_BT >= 0) & (sentence.index_BT == 0) & (sentence.size_BT > 1)
    may_BT = whole_BT & (column_BT + 2 * sentence.size_BT <= length)
    start_B1 = np.where(may_BT, noise_BT, -1.0).argmax(1)[:, None]
    is_B1 = (chosen_B & may_BT.any(1))[:, None]
    period_B1 = np.where(is_B1, np.take_along_axis(sentence.size_BT, start_B1, 1), 1)
    again_BT = is_B1 & (column_BT >= start_B1 + period_B1)
    source_BT = np.where(again_BT, start_B1 + (column_BT - start_B1) % period_B1, column_BT)
    return Copied(source_BT, np.where(is_B1, period_B1, 0)[:, 0], np.where(is_B1, start_B1 + period_B1, 0)[:, 0])


def less_likely(logprob_RT: Tensor, period_R: Tensor, first_R: Tensor, factor: float) -> Tensor:
    """[R, T]: -log(1 - |p - factor p'|) where a copy stands, 0 elsewhere; p is a token's probability and p' that of the
    same token one copy earlier, which no gradient goes through (Xu et al. 2022, equation 4). Least where each copy is
    `factor` times as likely as the one before."""
    column_T = torch.arange(logprob_RT.shape[1], device=logprob_RT.device)
    earlier_RT = (column_T - period_R[:, None]).clamp(min=0)
    wanted_RT = factor * logprob_RT.detach().exp().gather(1, earlier_RT)
    off_RT = (logprob_RT.exp() - wanted_RT).abs().clamp(max=CERTAIN)
    return torch.where(column_T >= first_R[:, None], -torch.log1p(-off_RT), 0.0)
