"""Reward model and DPO on batches of pairs: where scores are read, what padding and splits cannot change."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.adapters.lora import LoRA
from llmlab.adapters.part import adapter_parameters, add_adapter
from llmlab.adapters.roles import Actor, Role, RoleModel
from llmlab.alignment.preference import DPOObjective, ReferredPairs, reference_logprobs
from llmlab.alignment.reward import PreferenceObjective, pair_scores, standardise
from llmlab.data.batch import PairBatch, collate_pairs
from llmlab.model.places import Places
from llmlab.model.transformer import Architecture, Transformer
from llmlab.recipe import parse
from llmlab.runtime import generator

VOCABULARY, STOP = 12, 3
TABLE = {"reward": Role(adapter="reward", head="scalar", trained=True)}


def build(**parts: Any) -> Transformer:
    small: dict[str, Any] = {"layers": 2, "dim": 16, "context": 32, "initial_std": 0.3}
    return parse(Architecture, small | parts).build(VOCABULARY, 0).eval()


def stirred(model: Any) -> Any:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.3, generator=generator(1, name))
    return model


def rewarder(**parts: Any) -> RoleModel:
    model: RoleModel = stirred(RoleModel(build(**parts), TABLE, LoRA(rank=2), seed=0))
    return model


PROMPTS = [[1, 2], [4], [5, 6, 7]]
CHOSEN = [[8, 9, STOP], [10, STOP], [STOP]]
REJECTED = [[8, STOP], [11, 11, 11, STOP], [9, 9, STOP]]


def pairs(
    side: str = "right", pad_id: int | None = 0, rows: slice = slice(None), length: int | None = None
) -> PairBatch:
    def rendered(answers: list[list[int]]) -> list[tuple[list[int], list[bool]]]:
        whole = zip(PROMPTS[rows], answers[rows], strict=True)
        return [(p + a, [False] * len(p) + [True] * len(a)) for p, a in whole]

    tags = ["x", "y", "x"][rows]
    return collate_pairs(rendered(CHOSEN), rendered(REJECTED), pad_id, tags, length, side)


@pytest.mark.parametrize("position", ["learned", "rope", "alibi", "sinusoidal"])
@pytest.mark.parametrize("pad_id", [0, STOP])
def test_scores_do_not_know_the_padding(position: str, pad_id: int) -> None:
    """Traps 9, 14, 21: either side, any amount, and a padding id that is the stop token."""
    model = rewarder(position=position)
    expected = torch.cat(pair_scores(model, pairs()))
    for side in ("left", "right"):
        for length in (None, 12):
            assert torch.allclose(
                torch.cat(pair_scores(model, pairs(side, pad_id, length=length))), expected, atol=1e-5
            )
    alone = torch.tensor([PROMPTS[1] + CHOSEN[1]])
    score = model.values("reward", alone, Places.causal(1, alone.shape[1]))[0, -1]
    assert (score - expected[1]).abs().item() < 1e-5


def test_the_score_depends_on_the_stop_token() -> None:
    """It is read there, not before."""
    model = rewarder()
    batch = pairs()
    changed = batch.ids_BT.clone()
    rows = torch.arange(6)
    assert (changed[rows, batch.last_B] == STOP).all()
    changed[rows, batch.last_B] = 2
    other = replace(batch, ids_BT=changed)
    moved = torch.cat(pair_scores(model, other)) - torch.cat(pair_scores(model, batch))
    assert moved.abs().min().item() > 1e-4


def gradients(model: Any, objective: Any, batches: list[Any]) -> dict[str, torch.Tensor]:
    total = sum(objective.counts(batch)["loss"] for batch in batches)
    model.zero_grad()
    for batch in batches:
        (objective(model, batch).sums["loss"] / total).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("cuts", [[slice(0, 1), slice(1, 2), slice(2, 3)], [slice(0, 2), slice(2, 3)]])
def test_any_split_of_pairs_gives_the_same_gradient(cuts: list[slice]) -> None:
    model = rewarder()
    whole = gradients(model, PreferenceObjective(), [pairs()])
    split = gradients(model, PreferenceObjective(), [pairs(rows=cut) for cut in cuts])
    assert all(torch.allclose(whole[name], split[name], atol=1e-6) for name in whole)
    assert all(".adapters.reward." in name or name.startswith("heads.reward.") for name in whole)


@settings(deadline=None, max_examples=20)
@given(st.floats(-3, 3), st.floats(0.2, 5))
def test_standardising_changes_scale_and_nothing_else(shift: float, factor: float) -> None:
    model = rewarder()
    with torch.no_grad():
        model.head("reward").weight.mul_(factor)
        model.head("reward").bias.add_(shift)
        before = torch.cat(pair_scores(model, pairs()))
        mean, deviation = standardise(model, before)
        after = torch.cat(pair_scores(model, pairs()))
    assert float(after.mean()) == pytest.approx(0, abs=1e-4)
    assert float(after.std(correction=0)) == pytest.approx(1, abs=1e-3)
    assert torch.allclose(after * deviation + mean, before, atol=1e-3)


def test_an_untrained_head_is_not_divided_by_zero() -> None:
    model = RoleModel(build(), TABLE, LoRA(rank=2), seed=0)
    assert standardise(model, torch.cat(pair_scores(model, pairs())).detach()) == (0.0, 0.0)
    assert not torch.cat(pair_scores(model, pairs())).any()


# ---------------------------------------------------------------- DPO


def actor() -> Actor:
    base = build()
    add_adapter(base, "policy", LoRA(rank=2, dropout=0.5), seed=0)
    return Actor(base, "policy")


@pytest.mark.parametrize("whole", [True, False])
def test_dpo_starts_at_log_two(whole: bool) -> None:
    """And with no reward for either side, dropout asked for or not (trap 30)."""
    model: Any = build(dropout=0.5) if whole else actor()
    reference = reference_logprobs(model, [pairs(rows=slice(0, 2)), pairs(rows=slice(2, 3))])
    assert reference.shape == (3, 2)
    model.train()
    terms = DPOObjective(0.1)(model, ReferredPairs(pairs(), reference.T.flatten()))
    assert terms.sums["loss"].item() == pytest.approx(3 * math.log(2), abs=1e-5)
    assert float(terms.figures["chosen_reward"][0]) == pytest.approx(0, abs=1e-5)
    assert float(terms.figures["accuracy"][0]) <= 3


def test_dpo_by_hand() -> None:
    """Against log-probabilities summed token by token, prompt left out, stop token in."""
    model = stirred(actor())
    reference = reference_logprobs(build(), [pairs()])

    def by_hand(model: Any, prompt: list[int], answer: list[int]) -> float:
        ids = torch.tensor([prompt + answer])
        logprobs = model.logits(model.hidden(ids, Places.causal(1, ids.shape[1]))).log_softmax(-1)[0]
        return sum(float(logprobs[len(prompt) + i - 1, token].detach()) for i, token in enumerate(answer))

    loss = 0.0
    for i, prompt in enumerate(PROMPTS):
        sides = [by_hand(model, prompt, a) - by_hand(build(), prompt, a) for a in (CHOSEN[i], REJECTED[i])]
        assert float(reference[i, 0]) == pytest.approx(by_hand(build(), prompt, CHOSEN[i]), abs=1e-4)
        loss += math.log1p(math.exp(-0.3 * (sides[0] - sides[1])))
    for side in ("right", "left"):
        terms = DPOObjective(0.3)(model, ReferredPairs(pairs(side), reference.T.flatten()))
        assert terms.sums["loss"].item() == pytest.approx(loss, abs=1e-3)


def test_any_split_of_dpo_gives_the_same_gradient() -> None:
    model = stirred(actor())
    reference = reference_logprobs(build(), [pairs()])
    whole = gradients(model, DPOObjective(0.3), [ReferredPairs(pairs(), reference.T.flatten())])
    parts = [ReferredPairs(pairs(rows=slice(i, i + 1)), reference[i]) for i in range(3)]
    split = gradients(model, DPOObjective(0.3), parts)
    assert whole.keys() == {f"base.{n}" for n in _paths(model)}
    assert all(torch.allclose(whole[name], split[name], atol=1e-6) for name in whole)


def _paths(model: Actor) -> set[str]:
    named = {id(p): name for name, p in model.base.named_parameters()}
    return {named[id(p)] for p in adapter_parameters(model.base, "policy").values()}
