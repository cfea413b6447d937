"""Losses on pairs against their papers' formulas."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.objectives.preference import bradley_terry, dpo, sequence_logprobs

score = st.floats(-20, 20, width=32)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values)


def test_bradley_terry_by_hand() -> None:
    loss = bradley_terry(tensor(2.0, 0.0, -1.0), tensor(0.0, 0.0, 1.0))
    expected = [-math.log(1 / (1 + math.exp(-difference))) for difference in (2.0, 0.0, -2.0)]
    torch.testing.assert_close(loss, tensor(*expected))


@settings(deadline=None, max_examples=50)
@given(score, score, score)
def test_bradley_terry_knows_only_the_difference(a: float, b: float, shift: float) -> None:
    loss, other = bradley_terry(tensor(a), tensor(b)), bradley_terry(tensor(b), tensor(a))
    # P(a beats b) + P(b beats a) = 1, and the two losses differ by the difference of the scores.
    torch.testing.assert_close((-loss).exp() + (-other).exp(), tensor(1.0))
    torch.testing.assert_close(other - loss, tensor(a - b), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(bradley_terry(tensor(a + shift), tensor(b + shift)), loss, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(bradley_terry(tensor(a), tensor(b), margin_B=abs(shift)) >= loss, torch.tensor([True]))


def test_bradley_terry_is_finite_far_out() -> None:
    loss = bradley_terry(tensor(-1e4), tensor(1e4))
    torch.testing.assert_close(loss, tensor(2e4))


def test_broadcast_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="one value a pair"):
        bradley_terry(torch.zeros(3), torch.zeros(3, 1))


def test_dpo_at_the_reference_is_log_two() -> None:
    chosen, rejected = tensor(-5.0, -7.0), tensor(-6.0, -1.0)
    result = dpo(chosen, rejected, chosen, rejected, beta=0.1)
    torch.testing.assert_close(result.loss_B, torch.full((2,), math.log(2)))
    assert (result.chosen_reward_B == 0).all()


def test_dpo_gradient_is_equation_7s() -> None:
    policy = [tensor(-5.0).requires_grad_(), tensor(-6.0).requires_grad_()]
    reference = [tensor(-4.0).requires_grad_(), tensor(-6.5).requires_grad_()]
    result = dpo(*policy, *reference, beta=0.5)
    result.loss_B.sum().backward()
    # d/d log pi(chosen) = -beta sigmoid(reward of rejected - reward of chosen), and the opposite for rejected.
    reward_chosen, reward_rejected = 0.5 * (-5 + 4), 0.5 * (-6 + 6.5)
    slope = 0.5 / (1 + math.exp(reward_chosen - reward_rejected))
    torch.testing.assert_close(policy[0].grad, tensor(-slope))
    torch.testing.assert_close(policy[1].grad, tensor(slope))
    assert reference[0].grad is None
    torch.testing.assert_close(result.chosen_reward_B, tensor(reward_chosen))
    torch.testing.assert_close(result.rejected_reward_B, tensor(reward_rejected))
    assert not result.rejected_reward_B.requires_grad


def test_sequence_logprobs_sum() -> None:
    assert torch.equal(sequence_logprobs(tensor(0.0, -1.0, -2.0).view(1, 3)), tensor(-3.0))
