"""Learning from pairs: which of two answers is better. Pure functions; one value a pair, never a mean.

Shapes: B pairs, T tokens.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


def bradley_terry(chosen_B: Tensor, rejected_B: Tensor, margin_B: Tensor | float = 0.0) -> Tensor:
    """Loss [B] = -log sigmoid(chosen - rejected - margin), the negative log-likelihood that `chosen` wins.

    Bradley and Terry 1952; as a reward model's loss Ouyang et al. 2022 (InstructGPT), with a margin Touvron et al.
    2023 (Llama 2). Scores are scalars of whole answers; only their difference is learnt.
    """
    _same_shape(chosen_B, rejected_B)
    return -F.logsigmoid(chosen_B.float() - rejected_B.float() - margin_B)


def sequence_logprobs(logprobs_BT: Tensor) -> Tensor:
    """Log-probability of each row's answer [B], a sum (not a mean) over tokens that are 0 outside the answer."""
    return logprobs_BT.float().sum(-1)


class Dpo(NamedTuple):
    """`loss_B`, and the implicit rewards beta * log(policy / reference) of both answers, without gradient."""

    loss_B: Tensor
    chosen_reward_B: Tensor
    rejected_reward_B: Tensor


def dpo(
    policy_chosen_B: Tensor,
    policy_rejected_B: Tensor,
    reference_chosen_B: Tensor,
    reference_rejected_B: Tensor,
    beta: float,
) -> Dpo:
    """Direct preference optimization, Rafailov et al. 2023, equation 7, from four sequence log-probabilities [B].

    It is `bradley_terry` on the implicit rewards. At the reference itself the loss is log 2.
    """
    chosen_B = beta * (policy_chosen_B.float() - reference_chosen_B.detach().float())
    rejected_B = beta * (policy_rejected_B.float() - reference_rejected_B.detach().float())
    return Dpo(bradley_terry(chosen_B, rejected_B), chosen_B.detach(), rejected_B.detach())


def _same_shape(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise ValueError(f"one value a pair expected on both sides, got shapes {tuple(a.shape)} and {tuple(b.shape)}")
