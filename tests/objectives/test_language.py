"""Next-token prediction against the plain formula, on a real model."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.data.batch import IGNORE, Batch
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture, Transformer
from llmlab.objectives.language import NextToken, scatter, token_logprobs

V = 17


def model(**fields: object) -> Transformer:
    return Architecture(layers=2, dim=16, context=8, initial_std=0.3, **fields).build(V, seed=1)


def batch(seed: int = 0, learnt: float = 0.5, rows: int = 3, length: int = 8) -> Batch:
    noise = torch.Generator().manual_seed(seed)
    ids = torch.randint(V, (rows, length), generator=noise)
    targets = torch.randint(V, (rows, length), generator=noise)
    targets[torch.rand(rows, length, generator=noise) >= learnt] = IGNORE
    return Batch(ids, targets, Places.causal(rows, length))


@pytest.mark.parametrize("learnt", [1.0, 0.4])
def test_equals_the_plain_cross_entropy_with_its_gradient(learnt: float) -> None:
    net, some = model(), batch(learnt=learnt)
    terms = NextToken()(net, some)
    logits = net(some.ids_BT, some.at)
    plain = F.cross_entropy(logits.flatten(0, 1), some.targets_BT.flatten(), reduction="sum", ignore_index=IGNORE)
    torch.testing.assert_close(terms.sums["cross_entropy"], plain)
    ours = torch.autograd.grad(terms.sums["cross_entropy"], list(net.parameters()))
    theirs = torch.autograd.grad(plain, list(net.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    hits, count = terms.figures["accuracy"]
    mask = some.targets_BT != IGNORE
    assert hits == (logits.argmax(-1)[mask] == some.targets_BT[mask]).sum()
    assert count == mask.sum() == NextToken().counts(some)["cross_entropy"]


def test_logits_exist_only_where_something_is_learnt() -> None:
    net, some = model(), batch(learnt=0.3)
    seen = []
    plain = net.logits
    net.logits = lambda hidden: seen.append(hidden.shape[:-1].numel()) or plain(hidden)  # type: ignore[method-assign]
    NextToken()(net, some)
    assert seen == [some.learnt]


def test_what_is_masked_changes_nothing() -> None:
    net, some = model(), batch(learnt=0.5)
    ids = some.ids_BT.clone()
    last = (some.targets_BT != IGNORE).float().cumsum(-1).argmax(-1)  # each row's last learnt position
    for row, column in enumerate(last):
        ids[row, column + 1 :] = (ids[row, column + 1 :] + 5) % V
    other = Batch(ids, some.targets_BT, some.at)
    assert torch.equal(NextToken()(net, some).sums["cross_entropy"], NextToken()(net, other).sums["cross_entropy"])


def test_z_loss_is_a_term_of_the_same_count() -> None:
    net, some = model(), batch()
    objective = NextToken(z_loss=1e-3)
    terms = objective(net, some)
    logits = net(some.ids_BT, some.at)[some.targets_BT != IGNORE]
    torch.testing.assert_close(terms.sums["z"], logits.logsumexp(-1).square().sum())
    assert objective.counts(some) == {"cross_entropy": some.learnt, "z": some.learnt}
    assert objective.weights["z"] == 1e-3


def test_log_softmax_is_float32_under_bf16_autocast() -> None:
    net, some = model(), batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sums = NextToken(z_loss=1.0)(net, some).sums
        loss = sums["cross_entropy"]
        logprobs = token_logprobs(net, some)
    assert loss.dtype == logprobs.dtype == sums["z"].dtype == torch.float32
    # The sum of float32 log-probabilities of the same bf16 logits, to float32's precision and not bf16's.
    torch.testing.assert_close(loss, -logprobs.sum(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_logprobs(temperature: float) -> None:
    net, some = model(), batch()
    logprobs = token_logprobs(net, some, temperature=temperature)
    full = (net(some.ids_BT, some.at) / temperature).log_softmax(-1)
    mask = some.targets_BT != IGNORE
    expected = full.gather(-1, some.targets_BT.clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(logprobs[mask], expected[mask])
    assert (logprobs[~mask] == 0).all()


def test_nothing_learnt_gives_zeros() -> None:
    net, some = model(), batch(learnt=0.0)
    assert torch.equal(token_logprobs(net, some), torch.zeros(3, 8))
    assert NextToken().counts(some) == {"cross_entropy": 0.0}


@settings(deadline=None, max_examples=30)
@given(st.lists(st.booleans(), min_size=6, max_size=6))
def test_scatter_puts_back_what_was_selected(mask: list[bool]) -> None:
    chosen = torch.tensor(mask).view(2, 3)
    values = torch.arange(1.0, 7.0).view(2, 3)
    back = scatter(values[chosen], chosen.flatten().nonzero().squeeze(1), chosen.shape)
    assert torch.equal(back, values * chosen)


def test_amounts_do_not_count_padding() -> None:
    at = Places.of_lengths([2, 5], 6)
    targets = torch.full((2, 6), IGNORE)
    targets[1, 3] = 0
    some = Batch(torch.zeros(2, 6, dtype=torch.int64), targets, at)
    assert NextToken().amounts(some) == {"tokens": 7.0, "learnt_tokens": 1.0}
