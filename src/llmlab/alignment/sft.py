"""Supervised fine-tuning: the loss of pretraining, on answers only (Ouyang et al. 2022, arXiv 2203.02155)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator
from torch import nn

from llmlab.adapters.base import MEANING, BaseWeights, check_base, hold
from llmlab.adapters.kinds import Adapter
from llmlab.adapters.part import add_adapter
from llmlab.adapters.peft_format import save_adapter
from llmlab.adapters.roles import Actor
from llmlab.alignment.outcome import HELD_OUT, SMALLEST, exact_match, held_out_tasks, reference_to, renderer_of, spread
from llmlab.checkpoints.bundle import Bundle
from llmlab.checkpoints.native import plain_state, save_model
from llmlab.data.batch import Batch
from llmlab.data.chats import BundledChats, ChatBatches, ChatSource, TaskChats, chat_files, read_chats, split_chats
from llmlab.data.sources import Reading
from llmlab.data.tasks import Task
from llmlab.objectives.language import NextToken
from llmlab.recipe import Section
from llmlab.stages import Figures, Session
from llmlab.training.adamw import AdamW
from llmlab.training.loop import Training, train
from llmlab.training.state import clear_when_full

ADAPTER = "sft"


def _training() -> Training:
    return Training(steps=300, optimizer=AdamW(lr=1e-3))


class SFT(Section):
    """Fine-tuning on conversations."""

    data: tuple[ChatSource, ...] = Field(
        (TaskChats(), BundledChats()), min_length=1, description="conversations to learn the answers of"
    )
    held_out: float = Field(HELD_OUT, ge=SMALLEST, lt=1, description="share of prompts that is not learnt from")
    adapter: Adapter | None = Field(
        None, description="train small parts, or some of the weights, instead of all weights"
    )
    batch_size: int = Field(32, gt=0, description="conversations an optimizer step")
    micro_batch: int = Field(32, gt=0, description="conversations that go through the model at once")
    cut_away: float = Field(0.05, ge=0, lt=1, description="share of answers that the context may cut away entirely")
    watched: int = Field(256, gt=0, description="held-out conversations, and exercises, that are looked at")
    max_new_tokens: int = Field(48, gt=0, description="longest answer to a held-out exercise, in tokens")
    training: Training = Field(default_factory=_training, description="steps, optimizer, schedule, checkpoints")
    base_weights: BaseWeights = Field("fp32", description=MEANING)

    @property
    def apart(self) -> bool:
        """Whether what is learnt lies beside the base."""
        return self.adapter is not None and self.adapter.apart

    @model_validator(mode="after")
    def _base(self) -> "SFT":
        check_base(self.base_weights, self.apart)
        return self

    def files(self) -> list[Path]:
        return chat_files(self.data)


def sft(section: SFT, base: Bundle, out: Path, session: Session) -> Figures:
    """Fine-tune `base`, in place; leaves `out/model`, or with an adapter beside the base `out/adapter`. Goes on from
    `out/checkpoints`.

    The weights of the best held-out loss are kept. Raises `InputError` for data that cannot be used.
    """
    renderer, reading = renderer_of(base), Reading()
    sides = split_chats(read_chats(section.data, session.seed, reading), section.held_out, session.seed)
    batches, held = (
        ChatBatches(
            side,
            renderer,
            base.architecture.context,
            section.batch_size,
            section.micro_batch,
            session.seed,
            section.cut_away,
        )
        for side in (sides[0], spread(sides[1], section.watched))
    )
    model = hold(base, section.base_weights).model.to(session.device)
    if not section.apart:
        plain_state(model)  # what keeps an adapter could not be saved as weights
    if section.adapter is not None:
        add_adapter(model, ADAPTER, section.adapter, session.seed)
    figures = train(
        Actor(model, ADAPTER),
        NextToken(),
        batches,
        section.training,
        out,
        session,
        probe=AnswerLoss(held.once()),
        best="held_out_loss",
    )
    with clear_when_full(out):
        if section.apart:
            few = section.base_weights
            session.world.told(
                lambda: save_adapter(out / "adapter", model, ADAPTER, reference_to(base), base_weights=few)
            )
        else:
            session.world.told(lambda: save_model(out / "model", model, base.tokenizer))
    figures |= {"data": batches.fit.figures() | {"skipped": reading.skipped, "held_out": len(sides[1])}}
    if exercises := spread(_exercises(section, session.seed), section.watched):
        figures["held_out_exact_match"] = exact_match(
            Actor(model, ADAPTER), renderer, exercises, section.max_new_tokens
        )
    return figures


class AnswerLoss:
    """The probe of answers: cross entropy and accuracy a token on held-out batches, in float32."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = batches

    def __call__(self, model: nn.Module) -> dict[str, float]:
        objective, nats, hits, tokens = NextToken(), 0.0, 0.0, 0.0
        for batch in self._batches:
            terms = objective(model, batch)
            nats += float(terms.sums["cross_entropy"])
            right, count = terms.figures["accuracy"]
            hits, tokens = hits + float(right), tokens + count
        return {"held_out_loss": nats / tokens, "held_out_accuracy": hits / tokens}


def _exercises(section: SFT, seed: int) -> list[Task]:
    """The held-out ones of the exercises that the data has."""
    made: list[Any] = [source.tasks(seed) for source in section.data if isinstance(source, TaskChats)]
    return held_out_tasks([task for tasks in made for task in tasks], section.held_out, seed)
