"""Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290): pairs without a reward model or sampling.

The reference's log-probabilities are two numbers a pair, computed once before the first step: in training there is one
model, whole or with an adapter.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from llmlab.adapters.base import MEANING, BaseWeights, check_base, hold
from llmlab.adapters.kinds import Adapter
from llmlab.adapters.lora import LoRA
from llmlab.adapters.part import add_adapter
from llmlab.adapters.peft_format import save_adapter
from llmlab.adapters.roles import Actor
from llmlab.alignment.outcome import HELD_OUT, SMALLEST, reference_to, renderer_of, spread
from llmlab.alignment.reward import HeldOutPairs, accuracy_by_tag
from llmlab.checkpoints.bundle import Bundle
from llmlab.checkpoints.native import plain_state, save_model
from llmlab.data.batch import PairBatch, collate_pairs, listed
from llmlab.data.pair_rows import Pair
from llmlab.data.pairs import PairBatches, PairSource, TaskPairs, pair_files, read_pairs, split_pairs
from llmlab.data.sources import Reading
from llmlab.data.state import State
from llmlab.objectives.language import token_logprobs
from llmlab.objectives.objective import Objective, Terms
from llmlab.objectives.preference import Dpo, sequence_logprobs
from llmlab.objectives.preference import dpo as dpo_loss
from llmlab.recipe import Section
from llmlab.stages import Figures, Session
from llmlab.training.adamw import AdamW
from llmlab.training.loop import Training, train
from llmlab.training.state import clear_when_full

ADAPTER = "dpo"
Autocast = Callable[[], AbstractContextManager[Any]]


def _training() -> Training:
    return Training(steps=200, optimizer=AdamW(lr=5e-4, weight_decay=0.0))


class DPO(Section):
    """Direct preference optimisation of the policy on pairs."""

    data: tuple[PairSource, ...] = Field(
        (TaskPairs(),), min_length=1, description="pairs of a better and a worse answer"
    )
    held_out: float = Field(HELD_OUT, ge=SMALLEST, lt=1, description="share of prompts that is not learnt from")
    beta: float = Field(0.1, gt=0, description="how strongly the policy is held to the reference")
    adapter: Adapter | None = Field(LoRA(), description="train small parts, or some of the weights; null: all weights")
    batch_size: int = Field(32, gt=0, description="pairs an optimizer step")
    micro_batch: int = Field(16, gt=0, description="pairs that go through the model at once")
    too_long: float = Field(0.05, ge=0, lt=1, description="share of pairs that may be longer than the context")
    watched: int = Field(128, gt=0, description="held-out pairs that are looked at while training")
    training: Training = Field(default_factory=_training, description="steps, optimizer, schedule, checkpoints")
    base_weights: BaseWeights = Field("fp32", description=MEANING)

    @property
    def apart(self) -> bool:
        """Whether what is learnt lies beside the base."""
        return self.adapter is not None and self.adapter.apart

    @model_validator(mode="after")
    def _base(self) -> "DPO":
        check_base(self.base_weights, self.apart)
        return self

    def files(self) -> list[Path]:
        return pair_files(self.data)


def dpo(section: DPO, base: Bundle, out: Path, session: Session) -> Figures:
    """Optimise `base` on pairs, in place; leaves `out/adapter`, or without an adapter `out/model`. Goes on from
    `out/checkpoints`. `held_out_accuracy`: how often the implicit reward prefers the better of a held-out pair."""
    renderer, reading = renderer_of(base), Reading()
    sides = split_pairs(read_pairs(section.data, session.seed, reading), section.held_out, session.seed)
    model = Actor(hold(base, section.base_weights).model.to(session.device), ADAPTER)
    if not section.apart:
        plain_state(model.base)  # what keeps an adapter could not be saved as weights

    def batches_of(pairs: Sequence[Pair], autocast: Autocast = nullcontext) -> DPOBatches:
        context, size, micro = base.architecture.context, section.batch_size, section.micro_batch
        rendered = PairBatches(pairs, renderer, context, size, micro, session.seed, section.too_long)
        return DPOBatches(rendered, model, autocast)

    batches = batches_of(sides[0], session.autocast)
    watched, held = batches_of(spread(sides[1], section.watched)), batches_of(sides[1])
    if section.adapter is not None:
        add_adapter(model.base, ADAPTER, section.adapter, session.seed)
    objective = DPOObjective(section.beta)
    figures = train(
        model,
        objective,
        batches,
        section.training,
        out,
        session,
        probe=HeldOutPairs(objective, watched.once()),
        best="held_out_loss",
    )
    right = implied(model, objective, held.once())
    with clear_when_full(out):
        if section.apart:
            few = section.base_weights
            session.world.told(
                lambda: save_adapter(out / "adapter", model.base, ADAPTER, reference_to(base), base_weights=few)
            )
        else:
            session.world.told(lambda: save_model(out / "model", model.base, base.tokenizer))
    figures["data"] = {"pairs": len(batches.pairs.tags), "refused": batches.pairs.refused, "skipped": reading.skipped}
    return figures | accuracy_by_tag(right, held.pairs.tags)


@dataclass(frozen=True)
class ReferredPairs:
    """A batch of pairs and the reference's log-probability of each answer, [2B]: chosen ones, then rejected ones."""

    batch: PairBatch
    reference_B: Tensor

    @property
    def where(self) -> str:
        return self.batch.where


class DPOObjective(Objective[ReferredPairs]):
    """-log sigmoid of the difference of implicit rewards beta * log(policy / reference), a mean over pairs."""

    def __init__(self, beta: float) -> None:
        self.beta = beta
        self.weights = {"loss": 1.0}

    def counts(self, batch: ReferredPairs) -> dict[str, float]:
        return {"loss": float(batch.batch.pairs)}

    def amounts(self, batch: ReferredPairs) -> dict[str, float]:
        return {"tokens": float(batch.batch.tokens), "pairs": float(batch.batch.pairs)}

    def __call__(self, model: Any, batch: ReferredPairs) -> Terms:
        result = self.compare(model, batch)
        count = float(batch.batch.pairs)
        margin_B = result.chosen_reward_B - result.rejected_reward_B
        figures: dict[str, tuple[Tensor | float, float]] = {
            "accuracy": ((margin_B > 0).sum(), count),
            "margin": (margin_B.sum(), count),
            "chosen_reward": (result.chosen_reward_B.sum(), count),
            "rejected_reward": (result.rejected_reward_B.sum(), count),
        }
        return Terms({"loss": result.loss_B.sum()}, figures)

    def compare(self, model: Any, batch: ReferredPairs) -> Dpo:
        """Loss and implicit rewards of each pair, without dropout: policy and reference differ by weights alone."""
        model.eval()
        chosen_B, rejected_B = sequence_logprobs(token_logprobs(model, batch.batch)).chunk(2)
        reference_chosen_B, reference_rejected_B = batch.reference_B.chunk(2)
        return dpo_loss(chosen_B, rejected_B, reference_chosen_B, reference_rejected_B, self.beta)


class DPOBatches:
    """Pairs with the reference's log-probabilities, taken from `reference` as it is when this is made.

    `autocast` is what the policy will be run under: at the first step both must say the same.
    """

    def __init__(self, pairs: PairBatches, reference: Any, autocast: Autocast = nullcontext) -> None:
        self.pairs = pairs
        with autocast():
            self._reference_P2 = reference_logprobs(reference, pairs.once())

    def next(self, model: Any = None) -> list[ReferredPairs]:
        """The micro-batches of the next step."""
        return self._batches(self.pairs.order.take(self.pairs.batch_size))

    def once(self) -> list[ReferredPairs]:
        """Every pair once, in order: to evaluate on."""
        return self._batches(range(len(self.pairs.tags)))

    def _batches(self, indices: Sequence[int]) -> list[ReferredPairs]:
        return [
            self._batch(indices[at : at + self.pairs.micro_batch])
            for at in range(0, len(indices), self.pairs.micro_batch)
        ]

    def _batch(self, indices: Sequence[int]) -> ReferredPairs:
        chosen, rejected = ([self.pairs.rows[2 * pair + side] for pair in indices] for side in (0, 1))
        tags, sources = self.pairs.tags, self.pairs.sources
        where = listed(sources[pair] for pair in indices)
        batch = collate_pairs(chosen, rejected, None, [tags[pair] for pair in indices], where=where)
        return ReferredPairs(batch, self._reference_P2[list(indices)].T.flatten())

    def state(self) -> State:
        return self.pairs.state()

    def load(self, state: State) -> None:
        self.pairs.load(state)


@torch.no_grad()
def reference_logprobs(model: Any, batches: Sequence[PairBatch]) -> Tensor:
    """Log-probability of both answers of every pair under `model` as it is now, [pairs, 2]."""
    model.eval()
    sides = [torch.stack(sequence_logprobs(token_logprobs(model, batch)).chunk(2), 1) for batch in batches]
    return torch.cat(sides)


@torch.no_grad()
def implied(model: Any, objective: DPOObjective, batches: Sequence[ReferredPairs]) -> list[bool]:
    """Of each pair whether the implicit reward of the chosen answer is the higher one."""
    results = [objective.compare(model, batch) for batch in batches]
    return [hit for one in results for hit in (one.chosen_reward_B > one.rejected_reward_B).tolist()]
