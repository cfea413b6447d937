"""PPO's batches: rollouts made from the policy as it is, and their minibatches (Ziegler et al. 2019, arXiv 1909.08593).

A rollout: draw answers to prompts, score them, estimate advantages. Then `epochs` passes over it in `minibatches`
optimizer steps each. The rollout, the place in it, the KL controller and the place among the prompts are the batches'
state: a run killed in the middle of an epoch goes on bit for bit with the answers it had.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Generic, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from llmlab.adapters.roles import RoleModel
from llmlab.alignment.ppo_objective import PPOBatch
from llmlab.alignment.rewards import Judge, P, Reward
from llmlab.alignment.rollout import Rollout, check_sampling, finish, lay_out, sample, score
from llmlab.data.state import State
from llmlab.errors import InputError
from llmlab.evaluation.repetition import repetition
from llmlab.inference.engine import Completion
from llmlab.inference.sampling import Sampling
from llmlab.objectives.policy import kl_k1_value_only, kl_k3_value_only
from llmlab.recipe import KINDS, Section
from llmlab.runtime import derive, generator
from llmlab.stages import Session

FLAT_ROLLOUTS = 3  # so many rollouts in a row without a difference between answers are no accident


class Prompts(Protocol[P]):
    """Where prompts come from; owns its place."""

    def take(self, count: int) -> list[P]: ...
    def state(self) -> State: ...
    def load(self, state: State) -> None: ...


# ---------------------------------------------------------------- settings


class _Control(Section, ABC):
    beta: float = Field(0.05, ge=0, description="price of a nat of log(policy / reference), in units of the score")

    @abstractmethod
    def next(self, beta: float, kl: float, answers: int) -> float:
        """The price after a rollout of `answers` answers whose mean KL was `kl`."""


class FixedKL(_Control):
    """The same price all along."""

    kind: Literal["fixed"] = "fixed"

    def next(self, beta: float, kl: float, answers: int) -> float:
        return beta


class AdaptiveKL(_Control):
    """The price rises while the KL is above `target` and falls below it (Ziegler et al. 2019, section 2.2)."""

    kind: Literal["adaptive"] = "adaptive"
    target: float = Field(6.0, gt=0, description="wanted KL of an answer to the reference, in nats")
    horizon: int = Field(10_000, gt=0, description="answers over which the price follows; more is slower")

    def next(self, beta: float, kl: float, answers: int) -> float:
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        return beta * (1 + error * answers / self.horizon)


KLControl = Annotated[FixedKL | AdaptiveKL, *KINDS]


class Rolling(Section):
    """How a rollout is made and used up."""

    answers: int = Field(64, gt=0, description="answers a rollout, one a prompt")
    epochs: int = Field(2, gt=0, description="passes over a rollout")
    minibatches: int = Field(2, gt=0, description="optimizer steps a pass")
    micro_batch: int = Field(32, gt=0, description="answers that go through the model at once")
    gamma: float = Field(1.0, gt=0, le=1, description="discount a token")
    lam: float = Field(0.95, ge=0, le=1, description="lambda of generalized advantage estimation")
    missing_stop_penalty: float = Field(1.0, ge=0, description="taken from the score of an answer without a stop token")


# ---------------------------------------------------------------- batches


@dataclass
class _Store:
    """What a checkpoint holds beside the rollout's tensors."""

    rollouts: int = 0  # made so far
    taken: int = 0  # minibatches of the present one
    beta: float = 0.0
    flat: int = 0  # rollouts in a row whose scores were all equal
    endless: int = 0  # rollouts in a row in which no answer stopped


class PPOBatches(Generic[P]):
    """Minibatches of rollouts, made from the policy as it is when one is used up.

    `judge` only looks at answers for the report (a gold reward, say); nothing is learnt from it. `reward` scores them
    in place of the table's reward role where it is given.
    """

    def __init__(
        self,
        rolling: Rolling,
        control: FixedKL | AdaptiveKL,
        sampling: Sampling,
        prompts: Prompts[P],
        stop_ids: Collection[int],
        session: Session,
        judge: Judge[P] | None = None,
        reward: Reward[P] | None = None,
    ) -> None:
        check_sampling(sampling)
        self.rolling, self.control, self.sampling = rolling, control, sampling
        self.prompts, self.stop_ids, self.session = prompts, stop_ids, session
        self.judge, self.reward = judge, reward
        self.rollout: Rollout | None = None
        self._at = _Store(beta=control.beta)

    @property
    def rollouts(self) -> int:
        """How many were made."""
        return self._at.rollouts

    def next(self, model: RoleModel) -> list[PPOBatch]:
        model.eval()
        figures: dict[str, tuple[float, float]] = {}
        if self.rollout is None or self._at.taken == self.rolling.epochs * self.rolling.minibatches:
            figures = self._roll(model)
        assert self.rollout is not None
        epoch, part = divmod(self._at.taken, self.rolling.minibatches)
        random = generator(self.session.seed, "ppo order", self._at.rollouts, epoch)
        order = torch.randperm(len(self.rollout.ids_BT), generator=random)
        rows = order.tensor_split(self.rolling.minibatches)[part]
        where = f"rollout {self._at.rollouts}, pass {epoch + 1}, minibatch {part + 1}"
        self._at.taken += 1
        parts = [self.rollout.rows(index) for index in torch.split(rows, self.rolling.micro_batch)]
        return [PPOBatch(rows, {} if number else figures, where) for number, rows in enumerate(parts)]

    def state(self) -> State:
        tensors = {} if self.rollout is None else self.rollout.tensors()
        return State.join(rollout=State(tensors, asdict(self._at)), prompts=self.prompts.state())

    def load(self, state: State) -> None:
        mine = state.part("rollout")
        self._at = _Store(**mine.values)  # type: ignore[arg-type]
        self.rollout = Rollout.from_tensors(mine.tensors).to(self.session.device) if mine.tensors else None
        self.prompts.load(state.part("prompts"))

    # ------------------------------------------------------------ a rollout

    def _roll(self, model: RoleModel) -> dict[str, tuple[float, float]]:
        """Make the next rollout; its figures as (sum, count)."""
        number, r = self._at.rollouts, self.rolling
        prompts = self.prompts.take(r.answers)
        ids = [prompt.ids for prompt in prompts]
        seeds = [derive(self.session.seed, "rollout", number, row) for row in range(len(prompts))]
        done = self._answers(model, ids, seeds)
        answers = lay_out(ids, done, self.session.device)
        scored = score(model, answers, r.micro_batch, self.session.autocast)
        if self.reward is not None:
            given = torch.tensor(self.reward(prompts, done), device=self.session.device)
            scored = replace(scored, scores_B=given.float())
        scores_B = scored.scores_B - r.missing_stop_penalty * (~answers.stopped_B)
        self.rollout = finish(answers, scored, scores_B, self._at.beta, r.gamma, r.lam)
        figures = rollout_figures(self.rollout, scored.scores_B, answers.stopped_B, done)
        figures["beta"] = (self._at.beta, 1.0)
        if self.judge is not None:
            judged = self.judge(prompts, done).items()
            figures |= {name: (float(sum(values)), float(len(values))) for name, values in judged}
        self._refuse_flat(scores_B, answers.stopped_B)
        kl, answered = figures["kl"]
        self._at.beta = self.control.next(self._at.beta, kl / answered, r.answers)
        self._at.rollouts, self._at.taken = number + 1, 0
        return figures

    def _answers(self, model: RoleModel, ids: Sequence[Sequence[int]], seeds: Sequence[int]) -> list[Completion]:
        """One to each prompt, by the noise of its own seed. Ranks that have whole models draw a share each; where a
        forward pass takes all ranks, all draw all, and the first rank's count."""
        world = self.session.world
        if not self.session.apart:
            done = sample(model, ids, self.sampling, self.stop_ids, seeds)
            return world.told(lambda: done)
        mine = slice(world.rank, None, world.size)
        shares = world.all(lambda: sample(model, ids[mine], self.sampling, self.stop_ids, seeds[mine]))
        return [shares[row % world.size][row // world.size] for row in range(len(ids))]

    def _refuse_flat(self, scores_B: Tensor, stopped_B: Tensor) -> None:
        """No difference between answers, or no end to any: there is nothing to learn from (trap 32)."""
        a = self._at
        a.flat = a.flat + 1 if bool((scores_B == scores_B[0]).all()) else 0
        a.endless = a.endless + 1 if not bool(stopped_B.any()) else 0
        if a.flat >= FLAT_ROLLOUTS:
            raise InputError(
                "ppo",
                f"all answers of {a.flat} rollouts in a row have the same score ({float(scores_B[0]):.4g})",
                "is the reward model trained, and are prompts put through the chat template?",
            )
        if a.endless >= FLAT_ROLLOUTS:
            raise InputError(
                "ppo",
                f"no answer of {a.endless} rollouts in a row came to a stop token",
                "raise sampling.max_new_tokens, or fine-tune longer before",
            )


def rollout_figures(
    rollout: Rollout, scores_B: Tensor, stopped_B: Tensor, completions: Sequence[Completion]
) -> dict[str, tuple[float, float]]:
    """What to know about a rollout, as (sum, count): by answer, or by answer token where the name says so."""
    mask_BT = rollout.mask_BT
    rows, tokens = float(len(mask_BT)), float(mask_BT.sum())
    old_N, reference_N = rollout.old_BT[mask_BT], rollout.reference_BT[mask_BT]
    returns_N, values_N = rollout.returns_BT[mask_BT], rollout.values_BT[mask_BT]
    mismatch_N = (rollout.sampler_BT[mask_BT] - old_N).abs()
    spread = float(returns_N.var(correction=0))
    explained = 1 - float((returns_N - values_N).var(correction=0)) / spread if spread else 0.0
    return {
        "proxy_reward": (float(scores_B.sum()), rows),
        "kl": (float(kl_k1_value_only(old_N, reference_N).sum()), rows),
        "kl_k3": (float(kl_k3_value_only(old_N, reference_N).sum()), rows),
        "answer_tokens": (tokens, rows),
        "stopped": (float(stopped_B.sum()), rows),
        "repetition": (sum(repetition(done.ids) for done in completions), rows),
        "sampler_mismatch_mean": (float(mismatch_N.sum()), tokens),
        "sampler_mismatch_max": (float(mismatch_N.max()), 1.0),
        "value_explained": (explained, 1.0),
    }
