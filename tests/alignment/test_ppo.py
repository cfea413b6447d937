"""PPO on a toy whose reward is a liking for one token: invariants of the first step, masks, resume, learning."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.adapters.lora import LoRA
from llmlab.adapters.roles import Role, RoleModel, Roles
from llmlab.alignment.ppo_batches import AdaptiveKL, FixedKL, PPOBatches, Rolling, rollout_figures
from llmlab.alignment.ppo_objective import Clipping, PPOBatch, PPOObjective
from llmlab.data.order import ShuffledOrder
from llmlab.data.state import State
from llmlab.errors import InputError, Stopped
from llmlab.inference.engine import Completion
from llmlab.inference.sampling import Sampling
from llmlab.model.transformer import Architecture
from llmlab.recipe import parse
from llmlab.runtime import generator
from llmlab.stages import Session
from llmlab.training.adamw import AdamW
from llmlab.training.loop import Training, train

VOCABULARY, STOP, LIKED = 12, 3, 5
PLAIN = FixedKL(beta=0.02)
ROLES = Roles()


@dataclass(frozen=True)
class Question:
    ids: tuple[int, ...]


class Questions:
    """Seven prompts in shuffled order."""

    def __init__(self) -> None:
        self.order = ShuffledOrder(7, 0, "questions")

    def take(self, count: int) -> list[Question]:
        return [Question((1, 4 + i, 2)[: 1 + i % 3]) for i in self.order.take(count)]

    def state(self) -> State:
        return self.order.state()

    def load(self, state: State) -> None:
        self.order.load(state)


def liking(prompts: Sequence[Question], done: Sequence[Completion]) -> list[float]:
    """Share of the liked token."""
    return [answer.ids.count(LIKED) / 4 for answer in done]


def build(roles: Roles = ROLES, **lora: Any) -> RoleModel:
    base = parse(Architecture, {"layers": 1, "dim": 16, "context": 16, "initial_std": 0.3}).build(VOCABULARY, 0)
    return RoleModel(base, roles.table(), LoRA(rank=4, **lora), seed=0)


def batches(control: Any = PLAIN, session: Session | None = None, **rolling: Any) -> PPOBatches[Question]:
    values: dict[str, Any] = {"answers": 12, "epochs": 2, "minibatches": 2, "micro_batch": 4} | rolling
    return PPOBatches(
        Rolling(**values),
        control,
        Sampling(max_new_tokens=4),
        Questions(),
        [STOP],
        session or Session(),
        reward=liking,
    )


def moved(model: RoleModel) -> RoleModel:
    """A policy that has left the reference."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(3, name)))
    return model


# ---------------------------------------------------------------- the first step


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_on_policy_the_ratio_is_one_and_nothing_is_clipped(dropout: float) -> None:
    """Trap 28, with dropout asked for too: old and new must be the same function."""
    model = moved(build(dropout=dropout))
    model.train()
    source = batches()
    for batch in source.next(model):
        model.train()
        terms = PPOObjective(Clipping())(model, batch)
        assert float(terms.figures["clip_fraction"][0]) == 0
        assert abs(float(terms.figures["kl_to_old"][0])) < 1e-8
        advantages = batch.rollout.advantages_BT[batch.rollout.mask_BT].sum()
        assert terms.sums["policy"].item() == pytest.approx(-float(advantages), abs=1e-4)  # ratio 1
    assert source.rollout is not None
    gap = torch.where(source.rollout.mask_BT, source.rollout.old_BT - source.rollout.sampler_BT, 0.0)
    assert float(gap.abs().max()) < 1e-5


def test_a_fresh_policy_is_the_reference() -> None:
    figures = batches().next(build())[0].figures
    assert figures["kl"] == (0.0, 12.0)
    assert figures["kl_k3"] == (0.0, 12.0)
    assert batches().next(moved(build()))[0].figures["kl_k3"][0] > 0.01


# ---------------------------------------------------------------- masks and splits


def gradients(model: RoleModel, parts: Sequence[PPOBatch]) -> dict[str, torch.Tensor]:
    objective = PPOObjective(Clipping(entropy_weight=0.1))
    totals = sum(objective.counts(part)["policy"] for part in parts)
    model.zero_grad()
    for part in parts:
        terms = objective(model, part)
        total = sum(objective.weights[name] * value for name, value in terms.sums.items())
        (total / totals).backward()  # type: ignore[union-attr]
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@settings(deadline=None, max_examples=10)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_any_split_gives_the_same_gradient(sizes: list[int]) -> None:
    """Trap 1: policy, value and entropy alike."""
    model = moved(build())
    source = batches()
    source.next(model)
    whole = source.rollout
    assert whole is not None
    moved(model)  # off policy, so that clips bite
    cuts = torch.arange(12).split([*sizes, 12 - sum(sizes)]) if sum(sizes) < 12 else torch.arange(12).split(5)
    parts = [PPOBatch(whole.rows(index)) for index in cuts if len(index)]
    one, many = gradients(model, [PPOBatch(whole)]), gradients(model, parts)
    assert one.keys() == many.keys()
    assert all(torch.allclose(one[name], many[name], atol=1e-6) for name in one)


def test_masked_cells_change_nothing() -> None:
    """Trap 22: NaN and noise where the policy did not choose, in every tensor of the store."""
    model = moved(build())
    source = batches(micro_batch=12, minibatches=1)
    [batch] = source.next(model)
    moved(model)
    r = batch.rollout
    dirty = {}
    for name, tensor in r.tensors().items():
        if name == "ids_BT":
            tensor = torch.where(r.at.real, tensor, 7)
        elif tensor.ndim == 2:
            tensor = torch.where(r.mask_BT, tensor, float("nan"))
        dirty[name] = tensor
    other = PPOBatch(type(r).from_tensors(dirty))
    clean, dirt = PPOObjective(Clipping())(model, batch), PPOObjective(Clipping())(model, other)
    for name in clean.sums:
        assert torch.allclose(clean.sums[name], dirt.sums[name], atol=1e-5)
    for name in ("clip_fraction", "value_clip_fraction", "kl_to_old", "entropy_per_token"):
        assert float(clean.figures[name][0]) == pytest.approx(float(dirt.figures[name][0]), abs=1e-5)
    one, two = gradients(model, [batch]), gradients(model, [other])
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)
    done = [Completion([1], [0.0], "stop")]
    before = rollout_figures(r, r.scores_B, r.scores_B > 0, done)
    after = rollout_figures(other.rollout, r.scores_B, r.scores_B > 0, done)
    assert before.keys() == after.keys()
    assert all(before[name] == pytest.approx(after[name]) for name in before)


def test_one_backward_reaches_policy_and_critic_and_nobody_else() -> None:
    model = build()
    found = gradients(model, batches().next(model))
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(found)
    assert any(".adapters.policy." in name for name in found)
    assert "heads.critic.weight" in found
    assert not any(".adapters.reward." in name or "heads.reward" in name for name in found)


def test_a_critic_on_the_policys_adapter() -> None:
    roles = Roles(critic=Role(adapter="policy", head="scalar", trained=True))
    model = build(roles)
    found = gradients(model, batches().next(model))
    assert set(found) == {name for name, p in model.named_parameters() if p.requires_grad}


# ---------------------------------------------------------------- scores


def test_the_penalty_falls_on_answers_without_a_stop() -> None:
    """Trap 20: iff the stop token is absent."""
    for penalty in (0.0, 2.0):
        source = batches(missing_stop_penalty=penalty)
        source.next(build())
        r = source.rollout
        assert r is not None
        for row in range(12):
            answer = r.ids_BT[row, int(r.prompt_B[row]) : int(r.length_B[row])].tolist()
            expected = answer.count(LIKED) / 4 - (0.0 if answer[-1] == STOP else penalty)
            assert float(r.scores_B[row]) == pytest.approx(expected)
            assert STOP not in answer[:-1]
        assert {STOP} < set(r.ids_BT.flatten().tolist())


def test_equal_scores_stop_the_run_in_a_clear_line() -> None:
    """Trap 32."""
    source = batches(epochs=1, minibatches=1, missing_stop_penalty=0.0)
    source.reward = lambda prompts, done: [0.25] * len(prompts)
    model = build()
    source.next(model)
    source.next(model)
    with pytest.raises(InputError, match=r"all answers of 3 rollouts in a row have the same score \(0.25\)"):
        source.next(model)


def test_answers_that_never_end_stop_the_run() -> None:
    source = PPOBatches(
        Rolling(answers=4, epochs=1, minibatches=1), PLAIN, Sampling(max_new_tokens=2), Questions(), [99], Session(),
        reward=lambda prompts, done: [float(answer.ids[0]) for answer in done],
    )  # fmt: skip
    model = build()
    source.next(model)
    source.next(model)
    with pytest.raises(InputError, match="no answer of 3 rollouts in a row came to a stop"):
        source.next(model)


def test_a_judge_is_reported_and_never_learnt_from() -> None:
    def run(judge: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        source, model = batches(), build()
        source.judge = judge
        parts = source.next(model)
        return dict(parts[0].figures), gradients(model, parts)

    without, plain = run(None)
    figures, judged = run(lambda prompts, done: {"gold_reward": [1.0] * 11 + [7.0]})
    assert figures["gold_reward"] == (18.0, 12.0)
    assert {name: value for name, value in figures.items() if name != "gold_reward"} == without
    assert all(torch.equal(plain[name], judged[name]) for name in plain)


# ---------------------------------------------------------------- the KL controller


def test_the_adaptive_price_follows_the_target() -> None:
    """Ziegler et al. 2019, section 2.2: proportional, clipped to a fifth."""
    control = AdaptiveKL(beta=0.1, target=4.0, horizon=100)
    assert control.next(0.1, 4.0, 10) == pytest.approx(0.1)
    assert control.next(0.1, 4.4, 10) == pytest.approx(0.1 * (1 + 0.1 * 0.1))
    assert control.next(0.1, 40.0, 10) == pytest.approx(0.1 * (1 + 0.2 * 0.1))
    assert control.next(0.1, 0.0, 10) == pytest.approx(0.1 * (1 - 0.2 * 0.1))
    assert FixedKL(beta=0.1).next(0.1, 40.0, 10) == 0.1


# ---------------------------------------------------------------- learning, and going on


def training(steps: int, **other: Any) -> Training:
    values: dict[str, Any] = {"log_every": 4, "evaluate_every": 1000, "checkpoint_every": 1} | other
    return Training(steps=steps, optimizer=AdamW(lr=0.02, weight_decay=0.0), **values)


def weights(model: RoleModel) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_the_proxy_goes_up_and_the_base_stays(tmp_path: Path) -> None:
    model = build()
    before = weights(model)
    source = batches(answers=32, micro_batch=16, missing_stop_penalty=0.0)
    figures = train(model, PPOObjective(Clipping()), source, training(40, checkpoint_every=40), tmp_path, Session())
    rows = [json.loads(line) for line in (tmp_path / "figures.jsonl").read_text().splitlines()]
    proxy = [row["proxy_reward"] for row in rows if "proxy_reward" in row]
    assert len(proxy) == 10
    assert proxy[-1] > 2 * proxy[0]
    assert proxy[-1] > 0.4
    assert rows[-1]["kl"] > 0.1
    assert figures["steps"] == 40
    changed = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert changed == {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("how", ["full", "selective"])
def test_blocks_that_compute_twice_change_nothing(tmp_path: Path, how: str) -> None:
    """Rollouts go through a cache and are left alone; roles, a row each, are scored and learnt from as ever."""
    found = []
    for way in ("none", how):
        model = build()
        settings = training(4, activation_checkpointing=way)
        train(model, PPOObjective(Clipping()), batches(), settings, tmp_path / way, Session())
        found.append(weights(model))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("control", [PLAIN, AdaptiveKL(beta=0.1, target=0.5, horizon=50)])
def test_stopped_at_every_step_it_is_the_unbroken_run(tmp_path: Path, control: Any) -> None:
    """Traps 36 to 40: rollout store, place in it, controller, prompts, moments. Steps 2 to 7 cut inside rollouts."""
    steps = 9
    whole = build()
    unbroken = train(whole, PPOObjective(Clipping()), batches(control), training(steps), tmp_path / "whole", Session())
    cut_folder = tmp_path / "cut"
    for step in range(1, steps + 1):
        session = Session()
        source = _Stopping(batches(control, session), session, after=step)
        model = build()
        try:
            figures = train(model, PPOObjective(Clipping()), source, training(steps), cut_folder, session)
        except Stopped:
            assert step < steps
        else:
            assert step == steps
            assert figures["resumed_from_step"] == steps - 1
            assert {k: v for k, v in figures.items() if k != "resumed_from_step"} == {
                k: v for k, v in unbroken.items() if k != "resumed_from_step"
            }
            assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(model).items())
    last = cut_folder / "checkpoints" / f"step-{steps:06d}"
    for file in sorted(last.iterdir()):
        assert file.read_bytes() == (tmp_path / "whole" / "checkpoints" / last.name / file.name).read_bytes()


class _Stopping:
    """Asks to stop once `after` steps were taken."""

    def __init__(self, inner: PPOBatches[Question], session: Session, after: int) -> None:
        self.inner, self.session, self.after = inner, session, after
        self.steps = 0

    def next(self, model: RoleModel) -> list[PPOBatch]:
        self.steps += 1
        self.session.stop.requested = self.steps == self.after
        return self.inner.next(model)

    def state(self) -> State:
        return self.inner.state()

    def load(self, state: State) -> None:
        self.steps = self.after - 1  # each attempt makes one step more
        self.inner.load(state)


def test_a_checkpoint_in_the_middle_holds_the_rollout() -> None:
    """Trap 37: what goes on is what was drawn, not a new draw."""
    model = build()
    source = batches()
    source.next(model)
    state = source.state()
    fresh = batches()
    fresh.load(state)
    fresh.reward = None  # it must not be asked
    left, right = source.next(moved(model)), fresh.next(model)
    for one, two in zip(left, right, strict=True):
        assert one.where == two.where
        assert all(torch.equal(a, two.rollout.tensors()[name]) for name, a in one.rollout.tensors().items())
    assert replace(left[0], rollout=right[0].rollout).where == "rollout 1, pass 1, minibatch 2"
