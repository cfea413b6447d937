"""A reward model: an adapter and a scalar head on the policy's base, trained on which of two answers is better.

Bradley-Terry (1952) on the score of each answer's last token, as in Stiennon et al. 2020 (arXiv 2009.01325) and Ouyang
et al. 2022. Pairs fix scores up to a constant only, and training any scale: at the end both are set so that held-out
answers have mean 0 and deviation 1, which gives PPO's KL price a meaning. The order of answers does not change.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from llmlab.adapters.base import MEANING, BaseWeights, hold
from llmlab.adapters.kinds import RoleAdapter
from llmlab.adapters.lora import LoRA
from llmlab.adapters.peft_format import save_adapter
from llmlab.adapters.roles import Role, RoleModel
from llmlab.alignment.outcome import HELD_OUT, SMALLEST, reference_to, renderer_of, spread, told
from llmlab.checkpoints.bundle import Bundle
from llmlab.data.batch import PairBatch
from llmlab.data.pairs import PairBatches, PairSource, TaskPairs, pair_files, read_pairs, split_pairs
from llmlab.data.sources import Reading
from llmlab.evaluation.statistics import wilson
from llmlab.objectives.objective import Objective, Terms
from llmlab.objectives.preference import bradley_terry
from llmlab.recipe import Section
from llmlab.stages import Figures, Session
from llmlab.training.adamw import AdamW
from llmlab.training.loop import Training, train
from llmlab.training.state import clear_when_full

ADAPTER = "reward"
TABLE = {"reward": Role(adapter=ADAPTER, head="scalar", trained=True)}


def _training() -> Training:
    return Training(steps=200, optimizer=AdamW(lr=1e-3, weight_decay=0.0))


class Reward(Section):
    """A reward model on the policy's base."""

    data: tuple[PairSource, ...] = Field(
        (TaskPairs(),), min_length=1, description="pairs of a better and a worse answer"
    )
    held_out: float = Field(HELD_OUT, ge=SMALLEST, lt=1, description="share of prompts that is not learnt from")
    adapter: RoleAdapter = Field(LoRA(), description="the adapter that learns beside the scalar head")
    batch_size: int = Field(32, gt=0, description="pairs an optimizer step")
    micro_batch: int = Field(32, gt=0, description="pairs that go through the model at once")
    too_long: float = Field(0.05, ge=0, lt=1, description="share of pairs that may be longer than the context")
    watched: int = Field(128, gt=0, description="held-out pairs that are looked at while training")
    training: Training = Field(default_factory=_training, description="steps, optimizer, schedule, checkpoints")
    base_weights: BaseWeights = Field("fp32", description=MEANING)

    def files(self) -> list[Path]:
        return pair_files(self.data)


def reward(section: Reward, base: Bundle, out: Path, session: Session) -> Figures:
    """Train a reward model on `base`; leaves `out/adapter` with its head. Goes on from `out/checkpoints`.

    `held_out_accuracy` is that of all held-out pairs, with Wilson's 95 % interval, and again by the pairs' tags.
    """
    renderer, reading = renderer_of(base), Reading()
    sides = split_pairs(read_pairs(section.data, session.seed, reading), section.held_out, session.seed)
    batches, watched, held = (
        PairBatches(
            side,
            renderer,
            base.architecture.context,
            section.batch_size,
            section.micro_batch,
            session.seed,
            section.too_long,
        )
        for side in (sides[0], spread(sides[1], section.watched), sides[1])
    )
    shared = hold(base, section.base_weights).model.to(session.device)
    model = RoleModel(shared, TABLE, section.adapter, session.seed)
    figures = train(
        model,
        PreferenceObjective(),
        batches,
        section.training,
        out,
        session,
        probe=HeldOutPairs(PreferenceObjective(), watched.once()),
        best="held_out_loss",
    )
    right, scores = judged(model, held.once())
    figures["score_mean"], figures["score_deviation"] = standardise(model, scores)
    with clear_when_full(out):
        head, few = model.head("reward"), section.base_weights
        session.world.told(
            lambda: save_adapter(out / "adapter", model.base, ADAPTER, reference_to(base), head, base_weights=few)
        )
    figures["data"] = {"pairs": len(batches.tags), "refused": batches.refused, "skipped": reading.skipped}
    return figures | accuracy_by_tag(right, held.tags)


class HeldOutPairs:
    """The probe of pairs: loss and figures of an objective on held-out batches, in float32."""

    def __init__(self, objective: Objective[Any], batches: Sequence[Any]) -> None:
        self._objective, self._batches = objective, batches

    def __call__(self, model: Any) -> dict[str, float]:
        totals: dict[str, float] = {}
        pairs = 0.0
        for batch in self._batches:
            terms, count = self._objective(model, batch), self._objective.counts(batch)["loss"]
            sums = {"loss": float(terms.sums["loss"])} | {
                name: float(sum_) for name, (sum_, _) in terms.figures.items()
            }
            totals = {name: totals.get(name, 0.0) + value for name, value in sums.items()}
            pairs += count
        return {f"held_out_{name}": total / pairs for name, total in totals.items()}


def judged(model: RoleModel, batches: Sequence[PairBatch]) -> tuple[list[bool], Tensor]:
    """Of each pair whether the chosen answer scores higher; and all scores."""
    model.eval()
    right: list[bool] = []
    scores = []
    with torch.no_grad():
        for batch in batches:
            chosen_B, rejected_B = pair_scores(model, batch)
            right += (chosen_B > rejected_B).tolist()
            scores += [chosen_B, rejected_B]
    return right, torch.cat(scores)


def accuracy_by_tag(right: Sequence[bool], tags: Sequence[str]) -> Figures:
    """`held_out_accuracy` with Wilson's interval, `by_tag` the same of the pairs of each tag."""
    figures: Figures = {"held_out_accuracy": told(wilson(sum(right), len(right)))}
    named = sorted({tag for tag in tags if tag})
    hits = {tag: [hit for hit, other in zip(right, tags, strict=True) if other == tag] for tag in named}
    return figures | {"by_tag": {tag: told(wilson(sum(found), len(found))) for tag, found in hits.items()}}


def pair_scores(model: RoleModel, batch: PairBatch) -> tuple[Tensor, Tensor]:
    """Scores [B] of the chosen and of the rejected answers, each read at its last real token, whichever the padding
    side: the token at which the policy was done."""
    scores_BT = model.values("reward", batch.ids_BT, batch.at)
    chosen_B, rejected_B = scores_BT.gather(1, batch.last_B[:, None])[:, 0].chunk(2)
    return chosen_B, rejected_B


class PreferenceObjective(Objective[PairBatch]):
    """-log sigmoid(chosen - rejected), a mean over pairs."""

    weights = {"loss": 1.0}  # noqa: RUF012

    def counts(self, batch: PairBatch) -> dict[str, float]:
        return {"loss": float(batch.pairs)}

    def amounts(self, batch: PairBatch) -> dict[str, float]:
        return {"tokens": float(batch.tokens), "pairs": float(batch.pairs)}

    def __call__(self, model: RoleModel, batch: PairBatch) -> Terms:
        chosen_B, rejected_B = pair_scores(model, batch)
        margin_B = (chosen_B - rejected_B).detach()
        count = float(batch.pairs)
        figures: dict[str, tuple[Tensor | float, float]] = {
            "accuracy": ((margin_B > 0).sum(), count),
            "margin": (margin_B.sum(), count),
        }
        return Terms({"loss": bradley_terry(chosen_B, rejected_B).sum()}, figures)


@torch.no_grad()
def standardise(model: RoleModel, scores: Tensor) -> tuple[float, float]:
    """Shift and scale the reward head so that `scores` would have mean 0 and deviation 1; what they had."""
    mean, deviation = float(scores.mean()), float(scores.std(correction=0))
    head = model.head("reward")
    scale = deviation if deviation > 0 else 1.0
    head.weight.div_(scale)
    head.bias.sub_(mean).div_(scale)
    return mean, deviation
