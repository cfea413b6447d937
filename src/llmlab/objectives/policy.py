"""Policy gradients: advantages, clipped losses, and estimators of the KL divergence. Pure functions.

Every cell of a result outside its mask is 0, and no value that stands there, not even NaN, reaches a result or a
gradient. Losses are per token: the loop divides their sum by the step's count.

Shapes: B rows (episodes), T tokens, V vocabulary; `mask_BT` is bool, true at the tokens that the policy wrote.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from llmlab.errors import InputError


class Advantages(NamedTuple):
    """`advantages_BT`, and `returns_BT` = advantages + values: what the value function should have said."""

    advantages_BT: Tensor
    returns_BT: Tensor


def gae(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float, lam: float) -> Advantages:
    """Generalized advantage estimation, Schulman et al. 2015, equation 16, over the tokens inside the mask.

    delta_t = r_t + gamma * V_{t+1} - V_t and A_t = sum_k (gamma * lam)^k delta_{t+k}, where t + 1 is the next token
    inside the mask (prompts and padding in between do not exist for it) and the value after the last is 0.
    The recursion is one product with a triangular matrix of powers. No gradient.
    """
    _same_shape(rewards_BT, values_BT, mask_BT)
    rewards_BT, values_BT = rewards_BT.detach(), values_BT.detach()
    # Bring the tokens inside the mask to the front, in order, so that "next" is a shift.
    order_BT = torch.argsort((~mask_BT).to(torch.int8), dim=-1, stable=True)
    inside_BT = mask_BT.gather(-1, order_BT)
    reward_BT = _masked(rewards_BT.gather(-1, order_BT).float(), inside_BT)
    value_BT = _masked(values_BT.gather(-1, order_BT).float(), inside_BT)
    next_BT = torch.cat([value_BT[:, 1:], torch.zeros_like(value_BT[:, :1])], dim=-1)
    delta_BT = reward_BT + gamma * next_BT - value_BT
    steps_T = torch.arange(delta_BT.shape[-1], device=delta_BT.device)
    ahead_TT = steps_T[:, None] - steps_T[None, :]  # row: the token whose delta it is; column: whose advantage
    powers_TT = torch.where(ahead_TT >= 0, (gamma * lam) ** ahead_TT.clamp(min=0).float(), 0.0)
    front_BT = _masked(delta_BT @ powers_TT, inside_BT)
    advantages_BT = torch.zeros_like(front_BT).scatter(-1, order_BT, front_BT)
    return Advantages(advantages_BT, _masked(advantages_BT + values_BT, mask_BT))


def whiten(values_BT: Tensor, mask_BT: Tensor, shift_mean: bool = True) -> Tensor:
    """Scale to unit variance (and zero mean) over the mask of the whole batch: all rows of the step, never a part.

    Equal values, or a single one, carry no preference and give 0 (with `shift_mean` off: stay as they are).
    NaN or infinity inside the mask is an `InputError`: it would silence every other row of the batch.
    """
    values_BT = _masked(values_BT.double(), mask_BT)
    if not bool(torch.isfinite(values_BT).all()):
        row = int((~torch.isfinite(values_BT)).nonzero()[0, 0])
        raise InputError("rewards", f"row {row} of the batch is not a finite number", "look at the reward function")
    count = mask_BT.sum().clamp(min=1)
    mean = values_BT.sum() / count
    centred_BT = _masked(values_BT - mean, mask_BT)
    deviation = (centred_BT.square().sum() / count).sqrt()
    # Below float32's resolution the deviation is rounding, not signal: dividing by it would blow it up.
    if float(deviation) <= 1e-6 * float(values_BT.abs().max()):
        return (centred_BT * 0.0 if shift_mean else values_BT).float()
    white_BT = centred_BT / deviation
    return (white_BT if shift_mean else _masked(white_BT + mean, mask_BT)).float()


class Clipped(NamedTuple):
    """`loss_BT`, and `clipped_BT`: 1.0 at tokens where the clip was active."""

    loss_BT: Tensor
    clipped_BT: Tensor


def clipped_ratio_loss(
    logprobs_BT: Tensor, old_logprobs_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor, clip: float
) -> Clipped:
    """PPO's policy loss a token, Schulman et al. 2017, equation 7: -min(ratio * A, clamp(ratio, 1 +- clip) * A)."""
    _same_shape(logprobs_BT, old_logprobs_BT, advantages_BT, mask_BT)
    log_ratio_BT = _masked(logprobs_BT.float(), mask_BT) - _masked(old_logprobs_BT.detach().float(), mask_BT)
    advantages_BT = _masked(advantages_BT.detach().float(), mask_BT)
    ratio_BT = log_ratio_BT.exp()
    free_BT = -ratio_BT * advantages_BT
    held_BT = -ratio_BT.clamp(1.0 - clip, 1.0 + clip) * advantages_BT
    return Clipped(torch.maximum(free_BT, held_BT), (held_BT > free_BT).float().detach())


def clipped_value_loss(
    values_BT: Tensor, old_values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, clip: float
) -> Clipped:
    """The value loss a token, half the larger of the squared errors of the value and of the value held within `clip`
    of the old one (OpenAI baselines' ppo2; Engstrom et al. 2020). The larger: the clip must never make a wrong
    value look right."""
    _same_shape(values_BT, old_values_BT, returns_BT, mask_BT)
    values_BT, old_BT = _masked(values_BT.float(), mask_BT), _masked(old_values_BT.detach().float(), mask_BT)
    returns_BT = _masked(returns_BT.detach().float(), mask_BT)
    held_BT = old_BT + (values_BT - old_BT).clamp(-clip, clip)
    free_loss_BT, held_loss_BT = (values_BT - returns_BT).square(), (held_BT - returns_BT).square()
    return Clipped(0.5 * torch.maximum(free_loss_BT, held_loss_BT), (held_loss_BT > free_loss_BT).float().detach())


# ---------------------------------------------------------------- the KL divergence to the reference
#
# Estimators of KL(policy || reference) from the log-probabilities of tokens that the policy sampled (Schulman 2020,
# "Approximating KL Divergence"). `value_only`: the mean is the KL, the gradient of the mean is not the KL's gradient.
# k1's expected gradient is zero; k3's is that of the forward KL. `gradient_ok`: safe to put in a loss.


def kl_k1_value_only(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """log(p / q): unbiased; single values may be negative, which is no fault. For shaped rewards and reports."""
    return logprobs.float() - reference_logprobs.float()


def kl_k2_gradient_ok(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """log(p / q)^2 / 2: biased as a value when p and q differ much; its gradient is unbiased for the KL's."""
    return 0.5 * (logprobs.float() - reference_logprobs.float()).square()


def kl_k3_value_only(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """q / p - 1 - log(q / p): unbiased, never negative, of small variance. In a loss it pulls the wrong way round."""
    log_ratio = reference_logprobs.float() - logprobs.float()
    return torch.expm1(log_ratio) - log_ratio


def kl_k3_weighted_gradient_ok(logprobs: Tensor, old_logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """k3 times the importance ratio policy / old policy: unbiased in value and gradient, also off-policy
    (the unbiased estimate of DeepSeek-V3.2, 2025)."""
    ratio = (logprobs.float() - old_logprobs.detach().float()).exp()
    return ratio * kl_k3_value_only(logprobs, reference_logprobs)


def kl_exact(logits_NV: Tensor, reference_logits_NV: Tensor) -> Tensor:
    """KL(policy || reference) of each position's whole distribution, [N], with the true gradient."""
    log_p_NV, log_q_NV = logits_NV.float().log_softmax(-1), reference_logits_NV.float().log_softmax(-1)
    return (log_p_NV.exp() * (log_p_NV - log_q_NV)).sum(-1)


def entropy(logits_NV: Tensor) -> Tensor:
    """Entropy in nats of each position's distribution, [N], with gradient."""
    log_p_NV = logits_NV.float().log_softmax(-1)
    return -(log_p_NV.exp() * log_p_NV).sum(-1)


def _masked(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """`where`, not a product: 0 * NaN is NaN."""
    return torch.where(mask_BT, values_BT, 0.0)


def _same_shape(*tensors: Tensor) -> None:
    if len({tensor.shape for tensor in tensors}) != 1:
        raise ValueError(f"equal shapes [B, T] expected, got {[tuple(tensor.shape) for tensor in tensors]}")
