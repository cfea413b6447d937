"""Rollouts: what the policy wrote, and all that PPO needs to know about it, as tensors that a checkpoint can hold.

One layout for everything: column t is the state after ids[t], and what stands there belongs to the choice of ids[t+1].
`mask` is true where ids[t+1] is the policy's. So the last choice, mostly the stop token, stands in column length - 2;
the score goes there and nowhere later. Rows are padded on the right.

No logits of a whole rollout exist at any time: the sampler keeps one number a token, and scoring makes logits of the
answers of one micro-batch.

B rows, T tokens, N answer tokens of a micro-batch, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmlab.adapters.roles import RoleModel, exactly
from llmlab.errors import InputError
from llmlab.inference.engine import Completion, generate
from llmlab.inference.sampling import Sampling
from llmlab.model.places import Places
from llmlab.objectives.language import scatter, token_logprob
from llmlab.objectives.policy import gae, kl_k1_value_only, whiten

Autocast = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Answers:
    """Prompts and completions as one right-padded batch: `ids_BT`, `prompt_B` and `length_B` in tokens, `stopped_B`
    whether the answer ends in a stop token, `sampler_BT` the log-probabilities that the sampler drew with."""

    ids_BT: Tensor
    prompt_B: Tensor
    length_B: Tensor
    stopped_B: Tensor
    sampler_BT: Tensor

    @property
    def at(self) -> Places:
        return Places.of_lengths(self.length_B.tolist(), self.ids_BT.shape[1], device=self.ids_BT.device)

    @property
    def mask_BT(self) -> Tensor:
        return answer_mask(self.prompt_B, self.length_B, self.ids_BT.shape[1])


@dataclass(frozen=True)
class Rollout:
    """A scored batch of answers; each tensor has a row an answer. Columns as the module says."""

    ids_BT: Tensor
    prompt_B: Tensor
    length_B: Tensor
    sampler_BT: Tensor
    old_BT: Tensor
    reference_BT: Tensor
    values_BT: Tensor
    scores_B: Tensor
    advantages_BT: Tensor
    returns_BT: Tensor

    @property
    def at(self) -> Places:
        return Places.of_lengths(self.length_B.tolist(), self.ids_BT.shape[1], device=self.ids_BT.device)

    @property
    def mask_BT(self) -> Tensor:
        return answer_mask(self.prompt_B, self.length_B, self.ids_BT.shape[1])

    def rows(self, index: Tensor) -> Rollout:
        """Some of the rows, cut to the longest of them."""
        width = int(self.length_B[index].max())
        return Rollout(**{n: t[index, :width] if t.ndim == 2 else t[index] for n, t in self.tensors().items()})

    def to(self, device: torch.device) -> Rollout:
        return Rollout(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> Rollout:
        return Rollout(**{field.name: tensors[field.name] for field in fields(Rollout)})


def answer_mask(prompt_B: Tensor, length_B: Tensor, width: int) -> Tensor:
    """bool [B, T]: columns in which the policy chose the next token."""
    columns = torch.arange(width, device=prompt_B.device)
    return (columns >= prompt_B[:, None] - 1) & (columns < length_B[:, None] - 1)


# ---------------------------------------------------------------- sampling


def check_sampling(sampling: Sampling) -> None:
    """PPO learns from the policy's own distribution: whatever bends it would make the sampler's log-probabilities
    those of another policy than the one that is trained (trap 26)."""
    # Where an answer is cut, and which of the policy's answers it is, bends nothing.
    plain = Sampling(max_new_tokens=sampling.max_new_tokens, seed=sampling.seed)
    for name in Sampling.model_fields:
        value = getattr(sampling, name)
        if value != getattr(plain, name):
            raise InputError(
                f"sampling.{name}",
                f"{value!r} would bend the distribution that PPO learns from",
                "leave it at its default",
            )


def sample(
    model: RoleModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stop_ids: Collection[int],
    seeds: Sequence[int],
    role: str = "policy",
) -> list[Completion]:
    """Answers of a role, drawn from its own distribution; in float32, which costs a CPU nothing one token at a time."""
    check_sampling(sampling)
    return generate(model.base, prompts, sampling, stop_ids, seeds, role=model.role(role).adapter)


def lay_out(prompts: Sequence[Sequence[int]], completions: Sequence[Completion], device: torch.device) -> Answers:
    """Prompts and completions in one batch."""
    sizes = [(len(prompt), len(prompt) + len(done.ids)) for prompt, done in zip(prompts, completions, strict=True)]
    width = max(length for _, length in sizes)
    ids_BT = torch.zeros(len(sizes), width, dtype=torch.int64)
    sampler_BT = torch.zeros(len(sizes), width)
    for row, (prompt, done) in enumerate(zip(prompts, completions, strict=True)):
        start, end = sizes[row]
        ids_BT[row, :end] = torch.tensor([*prompt, *done.ids])
        sampler_BT[row, start - 1 : end - 1] = torch.tensor(done.logprobs)
    prompt_B, length_B = torch.tensor(sizes).T
    stopped_B = torch.tensor([done.finish_reason == "stop" for done in completions])
    return Answers(*(t.to(device) for t in (ids_BT, prompt_B, length_B, stopped_B, sampler_BT)))


# ---------------------------------------------------------------- scoring


@dataclass(frozen=True)
class Scored:
    """Log-probabilities of policy and reference, the critic's values [B, T], 0 outside the answers; the reward
    model's score [B] at the last token of each answer, 0 where the table has no reward role."""

    old_BT: Tensor
    reference_BT: Tensor
    values_BT: Tensor
    scores_B: Tensor


@torch.no_grad()
def score(model: RoleModel, answers: Answers, micro_batch: int, autocast: Autocast) -> Scored:
    """Every role's view of the answers, by the same forward pass that training uses, `micro_batch` rows at a time."""
    parts: list[tuple[Tensor, ...]] = []
    mask_BT, at, width = answers.mask_BT, answers.at, answers.ids_BT.shape[1]
    for start in range(0, len(answers.ids_BT), micro_batch):
        rows = slice(start, start + micro_batch)
        last_B1 = answers.length_B[rows, None] - 1
        columns = int(last_B1.max()) + 1
        *cells, reward_BT = _score(
            model, answers.ids_BT[rows, :columns], at[rows, :columns], mask_BT[rows, :columns], autocast
        )
        padded = [F.pad(cell_BT, (0, width - columns)) for cell_BT in cells]
        parts.append((*padded, reward_BT.gather(1, last_B1)[:, 0]))
    old_BT, reference_BT, values_BT, scores_B = (torch.cat(same) for same in zip(*parts, strict=True))
    return Scored(old_BT, reference_BT, values_BT, scores_B)


def _score(model: RoleModel, ids_BT: Tensor, at: Places, mask_BT: Tensor, autocast: Autocast) -> tuple[Tensor, ...]:
    roles = [name for name in ("policy", "critic", "reference", "reward") if name in model.table]
    with autocast():
        hidden = dict(zip(roles, model.hiddens(roles, ids_BT, at), strict=True))
        where_N = mask_BT.flatten().nonzero()[:, 0]
        old_BT = answer_logprobs(model, hidden["policy"], ids_BT, where_N)
        reference_BT = answer_logprobs(model, hidden["reference"], ids_BT, where_N)
        values_BT = torch.where(mask_BT, model.read("critic", hidden["critic"]), 0.0)
        no_reward = torch.zeros_like(values_BT)
        reward_BT = model.read("reward", hidden["reward"]) if "reward" in hidden else no_reward
        return old_BT, reference_BT, values_BT, reward_BT


def answer_logits(model: RoleModel, hidden_BTD: Tensor, ids_BT: Tensor, where_N: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [N, V] at the flat columns `where_N`, and the ids [N] that were chosen there.

    The head runs in float32 under autocast too: logits rounded to bfloat16 move log-probabilities by a twentieth.
    """
    hidden_ND = hidden_BTD.flatten(0, 1).index_select(0, where_N)
    with exactly(hidden_ND):
        return model.base.logits(hidden_ND.float()), ids_BT.roll(-1, 1).flatten()[where_N]


def answer_logprobs(model: RoleModel, hidden_BTD: Tensor, ids_BT: Tensor, where_N: Tensor) -> Tensor:
    """Log-probability of ids[t+1] in column t, [B, T] float32, at the flat columns `where_N`; 0 elsewhere."""
    logits_NV, ids_N = answer_logits(model, hidden_BTD, ids_BT, where_N)
    return scatter(token_logprob(logits_NV, ids_N), where_N, ids_BT.shape)


# ---------------------------------------------------------------- from scores to advantages


def shaped_rewards(
    scores_B: Tensor, old_BT: Tensor, reference_BT: Tensor, prompt_B: Tensor, length_B: Tensor, beta: float
) -> Tensor:
    """The reward of each choice, [B, T]: -beta * k1 at every answer token, and the score at the last one
    (Ziegler et al. 2019, arXiv 1909.08593, equation 2). Their sum over a row is score - beta * log(policy / reference).
    """
    mask_BT = answer_mask(prompt_B, length_B, old_BT.shape[1])
    last_BT = torch.arange(old_BT.shape[1], device=old_BT.device) == length_B[:, None] - 2
    rewards_BT = torch.where(mask_BT, -beta * kl_k1_value_only(old_BT, reference_BT), 0.0)
    return rewards_BT + torch.where(last_BT, scores_B[:, None].float(), 0.0)


def finish(answers: Answers, scored: Scored, scores_B: Tensor, beta: float, gamma: float, lam: float) -> Rollout:
    """Shape the rewards, estimate advantages, whiten them over every answer token of the rollout (trap 23)."""
    mask_BT = answers.mask_BT
    rewards_BT = shaped_rewards(scores_B, scored.old_BT, scored.reference_BT, answers.prompt_B, answers.length_B, beta)
    estimate = gae(rewards_BT, scored.values_BT, mask_BT, gamma, lam)
    return Rollout(
        ids_BT=answers.ids_BT,
        prompt_B=answers.prompt_B,
        length_B=answers.length_B,
        sampler_BT=answers.sampler_BT,
        old_BT=scored.old_BT,
        reference_BT=scored.reference_BT,
        values_BT=scored.values_BT,
        scores_B=scores_B,
        advantages_BT=whiten(estimate.advantages_BT, mask_BT),
        returns_BT=estimate.returns_BT,
    )
