"""Advantages, clipped losses and KL estimators against hand computation, brute force and exact toys."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmlab.errors import InputError
from llmlab.objectives import policy
from llmlab.objectives.policy import clipped_ratio_loss, clipped_value_loss, gae, whiten

seeds = st.integers(0, 2**31)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def masks(seed: int, rows: int, length: int) -> Tensor:
    return torch.rand(rows, length, generator=torch.Generator().manual_seed(seed + 1)) < 0.6


def brute_force(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """The recursion of the paper, token by token, over the tokens inside the mask."""
    out = torch.zeros_like(rewards)
    for row in range(len(rewards)):
        later_value, later_advantage = 0.0, 0.0
        for t in reversed(mask[row].nonzero()[:, 0].tolist()):
            delta = rewards[row, t] + gamma * later_value - values[row, t]
            later_advantage = float(delta + gamma * lam * later_advantage)
            later_value = float(values[row, t])
            out[row, t] = later_advantage
    return out


def test_gae_of_four_tokens_by_hand() -> None:
    # Two tokens of prompt, four of the answer, one of padding; the reward stands on the answer's last token.
    rewards = torch.tensor([[9.0, 9.0, 0.0, 0.0, 0.0, 1.0, 9.0]])
    values = torch.tensor([[9.0, 9.0, 0.5, 0.25, 0.5, 0.75, 9.0]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 0]]).bool()
    result = gae(rewards, values, mask, gamma=1.0, lam=0.5)
    # deltas: 0.25-0.5, 0.5-0.25, 0.75-0.5, 1-0.75 = -0.25, 0.25, 0.25, 0.25
    a3 = 0.25
    a2 = 0.25 + 0.5 * a3
    a1 = 0.25 + 0.5 * a2
    a0 = -0.25 + 0.5 * a1
    torch.testing.assert_close(result.advantages_BT, torch.tensor([[0, 0, a0, a1, a2, a3, 0]]))
    torch.testing.assert_close(result.returns_BT, torch.tensor([[0, 0, a0 + 0.5, a1 + 0.25, a2 + 0.5, a3 + 0.75, 0]]))
    assert (result.advantages_BT != 0).sum() == 4  # nonzero advantages: as many as the answer has tokens


@settings(deadline=None, max_examples=60)
@given(seeds, st.integers(1, 4), st.integers(1, 12), st.floats(0.5, 1.0), st.floats(0.0, 1.0))
def test_gae_equals_the_recursion(seed: int, rows: int, length: int, gamma: float, lam: float) -> None:
    rewards, values, mask = noise(seed, rows, length), noise(seed + 1, rows, length), masks(seed, rows, length)
    result = gae(rewards, values, mask, gamma, lam)
    expected = brute_force(rewards, values, mask, gamma, lam)
    torch.testing.assert_close(result.advantages_BT, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(result.returns_BT, torch.where(mask, expected + values, 0.0), atol=1e-5, rtol=1e-5)


def test_gae_with_lambda_one_is_the_return_minus_the_value() -> None:
    rewards, values, mask = noise(0, 2, 5), noise(1, 2, 5), torch.ones(2, 5).bool()
    to_go = rewards.flip(-1).cumsum(-1).flip(-1)
    torch.testing.assert_close(gae(rewards, values, mask, 1.0, 1.0).returns_BT, to_go)


@settings(deadline=None, max_examples=30)
@given(seeds, st.sampled_from([float("nan"), float("inf"), 1e30, -3.0]))
def test_masked_cells_change_nothing(seed: int, poison: float) -> None:
    """Not a value, not a gradient, not a metric; NaN included (trap 22)."""
    mask = masks(seed, 3, 6)
    clean = [noise(seed + n, 3, 6) for n in range(4)]
    dirty = [torch.where(mask, tensor, poison) for tensor in clean]

    def everything(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> list[Tensor]:
        a = a.clone().requires_grad_()
        d = d.clone().requires_grad_()
        advantages = whiten(gae(b, c, mask, 0.99, 0.9).advantages_BT, mask)
        ratio = clipped_ratio_loss(a, b, advantages, mask, 0.2)
        value = clipped_value_loss(d, c, gae(b, c, mask, 0.99, 0.9).returns_BT, mask, 0.2)
        (ratio.loss_BT.sum() + value.loss_BT.sum()).backward()
        assert a.grad is not None
        assert d.grad is not None
        white = whiten(b, mask, shift_mean=False)
        return [advantages, *ratio, *value, a.grad, d.grad, white]

    for one, other in zip(everything(*clean), everything(*dirty), strict=True):
        assert torch.equal(one, other)
        assert (one[~mask] == 0).all()


# ---------------------------------------------------------------- whitening


@settings(deadline=None, max_examples=40)
@given(seeds, st.floats(-100, 100), st.floats(0.01, 100))
def test_whitened_has_mean_zero_and_variance_one(seed: int, shift: float, scale: float) -> None:
    mask = masks(seed, 4, 6)
    mask[0, :2] = True
    values = shift + scale * noise(seed, 4, 6)
    inside = whiten(values, mask)[mask].double()
    torch.testing.assert_close(inside.mean(), torch.tensor(0.0).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(inside.square().mean(), torch.tensor(1.0).double(), atol=1e-4, rtol=0)
    unshifted = whiten(values, mask, shift_mean=False)[mask].double()
    torch.testing.assert_close(unshifted.mean(), values[mask].double().mean(), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 1e6, 1e-6, 0.3])
def test_equal_values_whiten_to_zero(value: float) -> None:
    """A group of equal rewards, and a group of one, say nothing (trap 23)."""
    for count in (1, 7):
        mask = torch.arange(9)[None] < count
        assert torch.equal(whiten(torch.full((1, 9), value), mask), torch.zeros(1, 9))
        torch.testing.assert_close(
            whiten(torch.full((1, 9), value), mask, shift_mean=False)[mask], torch.full((count,), value)
        )


def test_small_differences_survive_whitening() -> None:
    values = torch.tensor([[1e-7, 2e-7, 3e-7]])
    torch.testing.assert_close(whiten(values, torch.ones(1, 3).bool())[0, 2], torch.tensor(1.5**0.5))


def test_an_empty_mask_whitens_to_zeros() -> None:
    assert torch.equal(whiten(torch.ones(2, 3), torch.zeros(2, 3).bool()), torch.zeros(2, 3))


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_nan_reward_is_an_error(poison: float) -> None:
    values = torch.ones(3, 2)
    values[1, 0] = poison
    with pytest.raises(InputError, match="row 1"):
        whiten(values, torch.ones(3, 2).bool())


# ---------------------------------------------------------------- clipped losses


def row(*values: float) -> Tensor:
    return torch.tensor([values])


def test_clipped_ratio_at_both_sides_of_both_signs() -> None:
    """The clip holds only what would go too far in the direction that the advantage asks for."""
    new = row(1.5, 1.5, 0.5, 0.5, 1.0).log().requires_grad_()
    advantages = row(1.0, -1.0, 1.0, -1.0, 2.0)
    result = clipped_ratio_loss(new, torch.zeros(1, 5), advantages, torch.ones(1, 5).bool(), clip=0.2)
    torch.testing.assert_close(result.loss_BT, row(-1.2, 1.5, -0.5, 0.8, -2.0))
    assert torch.equal(result.clipped_BT, row(1.0, 0.0, 0.0, 1.0, 0.0))
    result.loss_BT.sum().backward()
    assert new.grad is not None
    torch.testing.assert_close(new.grad, row(0.0, 1.5, -0.5, 0.0, -2.0))


def test_on_policy_the_ratio_loss_is_the_policy_gradient() -> None:
    """First step: ratio 1, nothing clipped, and the gradient is that of -A log pi (trap 28)."""
    new, advantages = noise(0, 2, 4).requires_grad_(), noise(1, 2, 4)
    result = clipped_ratio_loss(new, new.detach(), advantages, torch.ones(2, 4).bool(), 0.2)
    torch.testing.assert_close(result.loss_BT, -advantages)
    assert result.clipped_BT.sum() == 0
    result.loss_BT.sum().backward()
    torch.testing.assert_close(new.grad, -advantages)


def test_value_clip_takes_the_larger_loss_at_both_signs() -> None:
    """Old value 0, clip 0.2. Min instead of max would let a value run away unpunished (trap 29)."""
    values = row(1.0, -1.0, 1.0, -1.0, 0.1).requires_grad_()
    returns = row(1.0, -1.0, -1.0, 1.0, 1.0)
    result = clipped_value_loss(values, torch.zeros(1, 5), returns, torch.ones(1, 5).bool(), clip=0.2)
    # Right already, but only by leaving the band: the held value is 0.8 off and counts, without gradient.
    # Wrong: the free value is 2 off, the held one 1.2, so the free one counts, with gradient.
    torch.testing.assert_close(result.loss_BT, 0.5 * row(0.64, 0.64, 4.0, 4.0, 0.81))
    assert torch.equal(result.clipped_BT, row(1.0, 1.0, 0.0, 0.0, 0.0))
    result.loss_BT.sum().backward()
    torch.testing.assert_close(values.grad, row(0.0, 0.0, 2.0, -2.0, -0.9))


def test_broadcast_shapes_are_refused() -> None:
    """A sequence's ratio spread over its tokens is another algorithm (trap 33)."""
    with pytest.raises(ValueError, match="equal shapes"):
        clipped_ratio_loss(torch.zeros(2, 1), torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2, 3).bool(), 0.2)


# ---------------------------------------------------------------- KL estimators on a categorical toy, exactly
#
# Every outcome of the policy is enumerated and weighed by its probability: expectations are sums, not samples.


def exact_mean(estimate: Tensor, log_p: Tensor) -> Tensor:
    return (log_p.detach().exp() * estimate).sum()


@pytest.fixture
def toy() -> tuple[Tensor, Tensor, Tensor]:
    """Logits of the policy (with gradient) and of the reference, and the policy's log-probabilities."""
    logits = noise(3, 1, 6).requires_grad_()
    return logits, logits.detach() + 0.7 * noise(4, 1, 6), logits.log_softmax(-1)


def test_kl_estimators_by_value_and_by_gradient(toy: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, reference, log_p = toy
    log_q = reference.log_softmax(-1)
    exact = policy.kl_exact(logits, reference).sum()
    (true_gradient,) = torch.autograd.grad(exact, logits, retain_graph=True)
    (forward_gradient,) = torch.autograd.grad(policy.kl_exact(reference, logits).sum(), logits, retain_graph=True)
    estimates = {
        "k1": policy.kl_k1_value_only(log_p, log_q),
        "k2": policy.kl_k2_gradient_ok(log_p, log_q),
        "k3": policy.kl_k3_value_only(log_p, log_q),
        "k3 weighted": policy.kl_k3_weighted_gradient_ok(log_p, log_p, log_q),
    }
    means = {name: exact_mean(estimate, log_p) for name, estimate in estimates.items()}
    slopes = {name: torch.autograd.grad(mean, logits, retain_graph=True)[0] for name, mean in means.items()}
    for name in ("k1", "k3", "k3 weighted"):
        torch.testing.assert_close(means[name], exact)
    assert abs(float((means["k2"] / exact).detach()) - 1) > 0.01  # biased as a value
    for name in ("k2", "k3 weighted"):
        torch.testing.assert_close(slopes[name], true_gradient)
    torch.testing.assert_close(slopes["k1"], torch.zeros_like(true_gradient), atol=1e-6, rtol=0)
    torch.testing.assert_close(slopes["k3"], forward_gradient)  # of the other divergence
    assert float((slopes["k3"] - true_gradient).norm() / true_gradient.norm()) > 0.05
    assert estimates["k1"].min() < 0 <= estimates["k3"].min()


def test_weighted_k3_holds_off_policy(toy: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, reference, log_p = toy
    log_old = (logits.detach() + 0.5 * noise(5, 1, 6)).log_softmax(-1)  # sampled from an older policy
    mean = exact_mean(policy.kl_k3_weighted_gradient_ok(log_p, log_old, reference.log_softmax(-1)), log_old)
    exact = policy.kl_exact(logits, reference).sum()
    torch.testing.assert_close(mean, exact)
    ours, true = (torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (mean, exact))
    torch.testing.assert_close(ours, true)


def test_entropy() -> None:
    torch.testing.assert_close(policy.entropy(torch.zeros(2, 8)), torch.full((2,), 8.0).log())
    logits = noise(0, 3, 5)
    torch.testing.assert_close(policy.entropy(logits), torch.distributions.Categorical(logits=logits).entropy())
