"""PPO from a reward model (Ouyang et al. 2022, arXiv 2203.02155): the stage, and what it came to.

By default one frozen base serves four roles (Hydra-RLHF, arXiv 2309.00754): the policy and the critic are adapters
that learn, the reward model is an adapter that does not, the reference is the base itself. The critic starts as a copy
of the reward model, adapter and head, as InstructGPT's does: it foretells from its first day what it is to foretell.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from llmlab.adapters.base import MEANING, BaseWeights, hold
from llmlab.adapters.kinds import RoleAdapter
from llmlab.adapters.lora import LoRA
from llmlab.adapters.opening import base_of
from llmlab.adapters.part import adapter_names, adapter_section, add_adapter, copy_adapter
from llmlab.adapters.peft_config import read_config
from llmlab.adapters.peft_format import load_head, load_peft, save_adapter
from llmlab.adapters.roles import RoleModel, Roles, counted_bytes, separate_bytes, static_bytes
from llmlab.alignment.outcome import (
    HELD_OUT,
    SMALLEST,
    TOGETHER,
    GoldJudge,
    ask,
    before_and_after,
    reference_to,
    renderer_of,
    spread,
)
from llmlab.alignment.ppo_batches import FixedKL, KLControl, PPOBatches, Rolling
from llmlab.alignment.ppo_objective import Clipping, PPOObjective
from llmlab.alignment.rollout import check_sampling, lay_out, score
from llmlab.checkpoints.bundle import Bundle
from llmlab.data.prompts import (
    EncodedPrompt,
    PromptSampler,
    PromptSource,
    TaskPrompts,
    prompt_files,
    read_prompts,
    split_prompts,
)
from llmlab.data.sources import Reading
from llmlab.errors import InputError
from llmlab.evaluation.repetition import repetition
from llmlab.inference.sampling import Sampling
from llmlab.objectives.policy import kl_k1_value_only
from llmlab.recipe import Section
from llmlab.stages import Figures, Session
from llmlab.training.adamw import AdamW
from llmlab.training.loop import Training, train
from llmlab.training.schedules import Linear
from llmlab.training.state import clear_when_full


def _training() -> Training:
    optimizer = AdamW(lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    return Training(steps=96, optimizer=optimizer, schedule=Linear(floor=0.1), log_every=4, checkpoint_every=24)


class PPO(Section):
    """Reinforcement learning of the policy against the reward model."""

    data: tuple[PromptSource, ...] = Field((TaskPrompts(),), min_length=1, description="prompts to answer")
    held_out: float = Field(HELD_OUT, ge=SMALLEST, lt=1, description="share of prompts that is not learnt from")
    too_long: float = Field(0.05, ge=0, lt=1, description="share of prompts that may be too long for the context")
    roles: Roles = Field(Roles(), description="who takes part: adapters and heads on one base")
    adapter: RoleAdapter = Field(LoRA(), description="the adapter of the policy, and of a critic that starts fresh")
    critic_start: Literal["reward", "zero"] = Field(
        "reward", description="the critic begins as a copy of the reward model, or at 0"
    )
    sampling: Sampling = Field(
        Sampling(max_new_tokens=32),
        description="only max_new_tokens is free: PPO learns from the policy's own distribution",
    )
    rolling: Rolling = Field(Rolling(), description="how rollouts are made and used")
    kl: KLControl = Field(FixedKL(), description="how the policy is held to the reference")
    clipping: Clipping = Field(Clipping(), description="the loss")
    measured: int = Field(200, gt=1, description="held-out prompts that are answered before and after")
    training: Training = Field(
        default_factory=_training, description="optimizer steps, epochs * minibatches of them a rollout"
    )
    base_weights: BaseWeights = Field("fp32", description=f"{MEANING}. As the reward model's")

    @model_validator(mode="after")
    def _possible(self) -> "PPO":
        try:
            check_sampling(self.sampling)
        except InputError as error:
            raise ValueError(str(error)) from None
        if self.rolling.minibatches > self.rolling.answers:
            raise ValueError(f"{self.rolling.answers} answers do not make {self.rolling.minibatches} minibatches")
        if self.roles.policy.adapter is None or not self.roles.policy.trained:
            raise ValueError("the policy needs an adapter of its own that is trained")
        if self.roles.reward.adapter is None:
            raise ValueError("the reward role needs an adapter: that is what a reward model is")
        return self

    def files(self) -> list[Path]:
        return prompt_files(self.data)


def ppo(section: PPO, base: Bundle, reward_folder: Path, out: Path, session: Session) -> Figures:
    """Train a policy over `base` against the reward model in `reward_folder`; leaves `out/adapter`. Goes on from
    `out/checkpoints`, in the middle of a rollout too.

    Figures: `gold_reward_before`, `_after` and `_change` (a program's opinion that nothing learns from) and the same
    of proxy reward, repetition, length; `kl_after`; bytes of the role table beside those of separate models.
    """
    renderer = renderer_of(base)
    model = roles_of(section, base, reward_folder, session)
    sides = split_prompts(read_prompts(section.data, session.seed, Reading()), section.held_out, session.seed)
    longest = base.architecture.context - section.sampling.max_new_tokens
    prompts = PromptSampler(sides[0], renderer, longest, session.seed, section.too_long)
    held = PromptSampler(spread(sides[1], section.measured), renderer, longest, session.seed, section.too_long)
    judge = GoldJudge(renderer.tokenizer)
    batches = PPOBatches(
        section.rolling, section.kl, section.sampling, prompts, renderer.stop_ids, session, judge=judge
    )
    figures = train(model, PPOObjective(section.clipping), batches, section.training, out, session)
    with clear_when_full(out):
        policy, few = str(section.roles.policy.adapter), section.base_weights
        session.world.told(
            lambda: save_adapter(out / "adapter", model.base, policy, reference_to(base), base_weights=few)
        )
    figures |= {"rollouts": batches.rollouts, "data": {"prompts": len(prompts.prompts), "refused": prompts.refused}}
    before, after = (
        look(model, role, held.prompts, section.sampling, renderer.stop_ids, judge, session)
        for role in ("reference", "policy")
    )
    adapters = {name: adapter_section(model.base, name) for name in adapter_names(model.base)}
    words, held_in = model.base.vocab_size, counted_bytes(model)["base"]
    figures["static_bytes"] = static_bytes(base.architecture, words, model.table, adapters, base_held=held_in)
    figures["separate_bytes"] = separate_bytes(base.architecture, words, model.table)
    return figures | before_and_after(before, after, session.seed)


def roles_of(section: PPO, base: Bundle, reward_folder: Path, session: Session) -> RoleModel:
    """The table on `base`, the reward model and the critic that starts from it filled in."""
    table, folder = section.roles.table(), reward_folder / "adapter"
    judged, starts = base_of(folder), base.origin
    if _place(judged) != _place(starts):
        raise InputError(
            str(folder), f"is a reward model on {judged}, the policy starts from {starts}", "share the base"
        )
    if (few := read_config(folder).base_weights) != section.base_weights:
        problem = f"was trained on a base in {few}, the policy's is in {section.base_weights}"
        raise InputError(str(folder), problem, f"ppo.base_weights={few}")
    model = hold(base, section.base_weights).model.to(session.device)
    reward, critic = str(table["reward"].adapter), table["critic"].adapter
    load_peft(folder, model, reward)
    copies = section.critic_start == "reward" and critic not in (None, table["policy"].adapter)
    if copies:
        add_adapter(model, str(critic), adapter_section(model, reward), session.seed)
        copy_adapter(model, reward, str(critic))
    roles = RoleModel(model, table, section.adapter, session.seed)
    load_head(folder, roles.head("reward"))
    if copies:
        load_head(folder, roles.head("critic"))
    return roles


def _place(origin: str) -> str:
    """A stage folder, whether it was named itself or by what lies in it."""
    path = Path(origin)
    return str(path.parent if path.name in ("model", "adapter") else path)


@torch.no_grad()
def look(
    model: RoleModel,
    role: str,
    prompts: list[EncodedPrompt],
    sampling: Sampling,
    stop_ids: frozenset[int],
    judge: GoldJudge,
    session: Session,
) -> dict[str, Any]:
    """What a role answers to held-out prompts, one value an answer: gold reward and its parts, proxy reward, KL to
    the reference, repetition, length, whether it stopped. Equal noise for whichever role."""
    ids = [prompt.ids for prompt in prompts]
    done = ask(model.base, ids, sampling, stop_ids, session.seed, model.role(role).adapter)
    answers = lay_out(ids, done, session.device)
    scored = score(model, answers, TOGETHER, session.autocast)
    own_BT = scored.reference_BT if role == "reference" else scored.old_BT
    return {
        **judge(prompts, done),
        "proxy_reward": scored.scores_B.tolist(),
        "kl": kl_k1_value_only(own_BT, scored.reference_BT).sum(1).tolist(),
        "repetition": [repetition(one.ids) for one in done],
        "answer_tokens": [float(len(one.ids)) for one in done],
        "stopped": answers.stopped_B.float().tolist(),
    }
