"""Rollouts: where scores and penalties land, what padding cannot touch, what the sampler and the trainer agree on."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmlab.adapters.lora import LoRA
from llmlab.adapters.roles import RoleModel, Roles
from llmlab.alignment.rollout import (
    Answers,
    Scored,
    answer_mask,
    check_sampling,
    finish,
    lay_out,
    sample,
    score,
    shaped_rewards,
)
from llmlab.errors import InputError
from llmlab.inference.engine import Completion
from llmlab.inference.sampling import Sampling
from llmlab.model.transformer import Architecture
from llmlab.objectives.policy import gae
from llmlab.recipe import parse
from llmlab.runtime import generator

VOCABULARY, STOP = 12, 3
CPU = torch.device("cpu")
ROLES = Roles()


def build(stir: float = 0.3, **parts: Any) -> RoleModel:
    small: dict[str, Any] = {"layers": 2, "dim": 16, "context": 32, "initial_std": 0.3}
    base = parse(Architecture, small | parts).build(VOCABULARY, 0)
    model = RoleModel(base, ROLES.table(), LoRA(rank=2), seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".adapters." in name or "heads" in name:
                parameter.normal_(0, stir, generator=generator(1, name))
    return model.eval()


PROMPTS = [[1, 2], [4, 5, 6, 7, 8], [9], [1, 1, 1]]


def answered(model: RoleModel, seed: int = 0, prompts: list[list[int]] = PROMPTS) -> tuple[Answers, list[Completion]]:
    seeds = [seed * 100 + i for i in range(len(prompts))]
    done = sample(model, prompts, Sampling(max_new_tokens=6), [STOP], seeds)
    return lay_out(prompts, done, CPU), done


def test_layout_by_hand() -> None:
    done = [Completion([7, STOP], [-1.0, -2.0], "stop"), Completion([8], [-3.0], "length")]
    answers = lay_out([[1, 2], [4, 5, 6]], done, CPU)
    assert answers.ids_BT.tolist() == [[1, 2, 7, STOP], [4, 5, 6, 8]]
    assert answers.mask_BT.tolist() == [[False, True, True, False], [False, False, True, False]]
    assert answers.sampler_BT.tolist() == [[0.0, -1.0, -2.0, 0.0], [0.0, 0.0, -3.0, 0.0]]
    assert answers.stopped_B.tolist() == [True, False]


def test_score_on_the_last_token_and_gae_by_hand() -> None:
    """Trap 19: a prompt of two, an answer of two; the score stands where the stop token was chosen."""
    prompt, length = torch.tensor([2]), torch.tensor([4])
    old, reference = torch.tensor([[0.0, -1.0, -0.5, 0.0]]), torch.tensor([[0.0, -1.2, -0.1, 0.0]])
    rewards = shaped_rewards(torch.tensor([2.0]), old, reference, prompt, length, beta=0.5)
    assert torch.allclose(rewards, torch.tensor([[0.0, -0.5 * 0.2, -0.5 * -0.4 + 2.0, 0.0]]))
    values = torch.tensor([[9.0, 0.3, 0.7, 9.0]])
    estimate = gae(rewards, values, answer_mask(prompt, length, 4), gamma=1.0, lam=0.5)
    last = 2.2 - 0.7
    first = -0.1 + 0.7 - 0.3 + 0.5 * last
    assert torch.allclose(estimate.advantages_BT, torch.tensor([[0.0, first, last, 0.0]]))
    assert torch.allclose(estimate.returns_BT, torch.tensor([[0.0, first + 0.3, last + 0.7, 0.0]]))


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=5),
    st.floats(0, 2),
    st.integers(0, 99),
)
def test_what_is_given_is_what_was_earned(sizes: list[tuple[int, int]], beta: float, seed: int) -> None:
    """The shaped rewards of a row sum to score - beta * log ratio; as many cells count as tokens were answered."""
    prompt = torch.tensor([p for p, _ in sizes])
    length = prompt + torch.tensor([a for _, a in sizes])
    shape = (len(sizes), int(length.max()))
    mask = answer_mask(prompt, length, shape[1])
    random = generator(seed, "cells")
    old, reference = (torch.where(mask, -torch.rand(shape, generator=random), 0.0) for _ in range(2))
    scores = torch.randn(len(sizes), generator=random)
    rewards = shaped_rewards(scores, old, reference, prompt, length, beta)
    assert torch.allclose(rewards.sum(1), scores - beta * (old - reference).sum(1), atol=1e-5)
    assert int(mask.sum()) == sum(a for _, a in sizes)
    assert not rewards[~mask].any()
    rows = torch.arange(len(sizes))
    assert mask[rows, length - 2].all()
    assert not mask[rows, length - 1].any()


def test_the_sampler_and_the_trainer_agree() -> None:
    """Trap 27, and the first of 28: the same weights give the same log-probabilities on both ways."""
    model = build()
    answers, _ = answered(model)
    scored = score(model, answers, 4, contextlib.nullcontext)
    assert float((scored.old_BT - answers.sampler_BT).abs().max()) < 1e-5
    assert int((scored.old_BT != 0).sum()) == int(answers.mask_BT.sum())


def test_the_reference_is_the_base_without_its_adapters() -> None:
    model = build()
    answers, _ = answered(model)
    scored = score(model, answers, 4, contextlib.nullcontext)
    plain = build(0.0).base
    logprobs = plain(answers.ids_BT, answers.at).log_softmax(-1)
    for row in range(len(PROMPTS)):
        for t in range(int(answers.prompt_B[row]) - 1, int(answers.length_B[row]) - 1):
            expected = logprobs[row, t, answers.ids_BT[row, t + 1]]
            assert float((scored.reference_BT[row, t] - expected).abs()) < 1e-5
    assert float((scored.reference_BT - scored.old_BT).abs().max()) > 0.01


@pytest.mark.parametrize("position", ["learned", "rope", "alibi"])
def test_scores_do_not_know_their_neighbours_or_the_padding(position: str) -> None:
    """Trap 21 and 22: alone, among longer rows, in other micro-batches, with rubbish in the padding."""
    model = build(position=position)
    answers, _ = answered(model)
    together = score(model, answers, 4, contextlib.nullcontext)
    apart = score(model, answers, 1, contextlib.nullcontext)
    rubbish = torch.where(answers.at.real, answers.ids_BT, 11)
    dirty = Answers(rubbish, answers.prompt_B, answers.length_B, answers.stopped_B, answers.sampler_BT)
    filled = score(model, dirty, 3, contextlib.nullcontext)
    for name in ("old_BT", "reference_BT", "values_BT", "scores_B"):
        assert torch.allclose(getattr(together, name), getattr(apart, name), atol=1e-5)
        assert torch.allclose(getattr(together, name), getattr(filled, name), atol=1e-5)
    for row, ids in enumerate(answers.ids_BT):
        one = ids[None, : int(answers.length_B[row])]
        alone = model.values("reward", one, Answers.at.fget(_only(answers, row)))[0, -1]  # type: ignore[attr-defined]
        assert float((alone - together.scores_B[row]).abs()) < 1e-5


def _only(answers: Answers, row: int) -> Answers:
    length = int(answers.length_B[row])
    index = slice(row, row + 1)
    return Answers(
        answers.ids_BT[index, :length],
        answers.prompt_B[index],
        answers.length_B[index],
        answers.stopped_B[index],
        answers.sampler_BT[index, :length],
    )


def test_advantages_are_whitened_over_the_whole_rollout() -> None:
    model = build()
    answers, _ = answered(model)
    scored = score(model, answers, 4, contextlib.nullcontext)
    rollout = finish(answers, scored, scored.scores_B, 0.1, 1.0, 0.95)
    inside = rollout.advantages_BT[rollout.mask_BT]
    assert abs(float(inside.mean())) < 1e-5
    assert float(inside.std(correction=0)) == pytest.approx(1, abs=1e-4)
    assert not rollout.advantages_BT[~rollout.mask_BT].any()


def test_a_score_that_is_no_number_is_an_error() -> None:
    """Trap 23: NaN must not become advantages of zero."""
    model = build()
    answers, _ = answered(model)
    scored = score(model, answers, 4, contextlib.nullcontext)
    scores = scored.scores_B.clone()
    scores[1] = float("nan")
    with pytest.raises(InputError, match=r"row 1 .*not a finite number"):
        finish(answers, scored, scores, 0.1, 1.0, 0.95)


def test_rows_of_a_rollout_are_cut_to_the_longest_and_survive_a_file() -> None:
    model = build()
    answers, _ = answered(model)
    scored = score(model, answers, 4, contextlib.nullcontext)
    rollout = finish(answers, scored, scored.scores_B, 0.1, 1.0, 0.95)
    some = rollout.rows(torch.tensor([2, 0]))
    assert some.ids_BT.shape[1] == int(rollout.length_B[[0, 2]].max())
    assert torch.equal(some.scores_B, rollout.scores_B[[2, 0]])
    assert int(some.mask_BT.sum()) == int(rollout.mask_BT[[0, 2]].sum())
    again = type(rollout).from_tensors(rollout.tensors())
    assert all(torch.equal(t, again.tensors()[name]) for name, t in rollout.tensors().items())


BENT: dict[str, Any] = {
    "temperature": 0.7,
    "top_k": 5,
    "top_p": 0.9,
    "min_p": 0.1,
    "typical_p": 0.9,
    "repetition_penalty": 1.1,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "no_repeat_ngram_size": 3,
    "logit_bias": {3: 1.0},
    "constraint": {"kind": "regex", "pattern": "a"},
    "min_new_tokens": 2,
    "stop": ("x",),
}


@pytest.mark.parametrize("name", [name for name in Sampling.model_fields if name not in ("max_new_tokens", "seed")])
def test_a_bent_distribution_is_refused(name: str) -> None:
    """Trap 26; a setting that comes later must be refused too, or be known to the scorer."""
    with pytest.raises(InputError, match=rf"sampling\.{name}.*would bend"):
        check_sampling(Sampling(**{name: BENT[name]}))


def test_greedy_answers_are_refused_too() -> None:
    with pytest.raises(InputError, match=r"sampling\.temperature.*would bend"):
        check_sampling(Sampling(temperature=0))


def test_no_cell_of_the_vocabulary_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap 31: logits exist for the answer tokens of one micro-batch, never for a rollout."""
    model = build()
    answers, _ = answered(model)
    seen: list[int] = []
    plain = model.base.logits

    def count(hidden: Tensor) -> Tensor:
        seen.append(hidden.shape[:-1].numel())
        return plain(hidden)

    monkeypatch.setattr(model.base, "logits", count)
    score(model, answers, 1, contextlib.nullcontext)
    assert max(seen) <= 6
    assert sum(seen) == 2 * int(answers.mask_BT.sum())  # policy and reference


def test_scored_has_a_row_an_answer() -> None:
    model = build()
    answers, _ = answered(model)
    scored = score(model, answers, 3, contextlib.nullcontext)
    assert isinstance(scored, Scored)
    assert scored.scores_B.shape == (4,)
    assert scored.values_BT.shape == answers.ids_BT.shape
