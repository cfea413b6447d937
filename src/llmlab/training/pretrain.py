"""The `pretrain` stage: a new model, or one that goes on from a base, trained on packed documents; its best weights are
kept."""

from pathlib import Path

from pydantic import Field

from llmlab.checkpoints.bundle import Bundle
from llmlab.checkpoints.native import save_model
from llmlab.data.pack import Isolated, Packing
from llmlab.data.shards import TokenShards
from llmlab.errors import InputError
from llmlab.model.transformer import Architecture, Transformer
from llmlab.objectives.kind import Setting
from llmlab.objectives.pretraining import Causal, PretrainObjective
from llmlab.recipe import Section
from llmlab.stages import Figures, Session
from llmlab.tokenization.tokenizer import Tokenizer
from llmlab.training.loop import Training, train
from llmlab.training.muon import Muon
from llmlab.training.probe import held_out
from llmlab.training.state import clear_when_full


def _training() -> Training:
    return Training(steps=300, optimizer=Muon())


class Pretrain(Section):
    """Training on the documents, of a new model or of a base."""

    objective: PretrainObjective = Field(default_factory=Causal, description="what is predicted from what")
    length: int | None = Field(None, gt=0, description="tokens a row; null: the context of the architecture")
    batch_size: int = Field(16, gt=0, description="rows an optimizer step")
    micro_batch: int = Field(16, gt=0, description="rows that go through the model at once; bounds memory only")
    packing: Packing = Field(default_factory=Isolated, description="whether documents in a row see each other")
    z_loss: float = Field(0.0, ge=0.0, description="weight of the squared log of the softmax's denominator")
    logits_at_once: int | None = Field(
        None, gt=0, description="positions whose logits exist at once; null: as many as fit 64 MB"
    )
    training: Training = Field(default_factory=_training, description="steps, optimizer, schedule, checkpoints")

    def row(self, architecture: Architecture) -> int:
        """Tokens a row. InputError for more than the context."""
        length = self.length or architecture.context
        if length > architecture.context:
            raise InputError("pretrain.length", f"{length} is beyond the model's context of {architecture.context}")
        return length

    def check(self, architecture: Architecture) -> None:
        """InputError, by name, where the architecture lacks what this training needs."""
        self.objective.reading(self.row(architecture))
        self.objective.check(architecture, self.packing)

    def special(self, architecture: Architecture) -> tuple[str, ...]:
        """The special tokens that its objective needs."""
        return self.objective.special(self.row(architecture))


def pretrain(
    section: Pretrain,
    architecture: Architecture,
    tokenizer: Tokenizer,
    train_shards: TokenShards,
    held_shards: TokenShards,
    out: Path,
    session: Session,
) -> Figures:
    """Train a new model and leave it in `out/model`; goes on from `out/checkpoints`.

    The figures `held_out_...` are the objective's; what it makes small is what the best weights are kept by. Raises
    `InputError` for an architecture or tokenizer that lacks what the objective needs, shards of another tokenizer, a
    length beyond the context, a corpus shorter than a row.
    """
    section.check(architecture)
    architecture = section.objective.settled(architecture, tokenizer)
    model = architecture.build(tokenizer.vocab_size, session.seed)
    return _trained(section, model, tokenizer, train_shards, held_shards, out, session)


def go_on(
    section: Pretrain, base: Bundle, train_shards: TokenShards, held_shards: TokenShards, out: Path, session: Session
) -> Figures:
    """Go on training `base`, in place, on documents of its own tokenizer: a domain learnt, or a longer context (Chen et
    al. 2023, arXiv 2306.15595). Errors as of `pretrain`; InputError too for a base without a tokenizer."""
    tokenizer = base.tokenizer
    if tokenizer is None:
        raise InputError(base.origin, "has no tokenizer", "put tokenizer.json beside the weights")
    section.check(base.architecture)
    if missing := [name for name in section.special(base.architecture) if tokenizer.token_id(name) is None]:
        problem = f"its tokenizer has no {missing[0]}, which the objective {section.objective.kind} needs"
        raise InputError(base.origin, problem, "train a new model with it, or take next_token")
    return _trained(section, base.model, tokenizer, train_shards, held_shards, out, session)


def _trained(
    section: Pretrain,
    model: Transformer,
    tokenizer: Tokenizer,
    train_shards: TokenShards,
    held_shards: TokenShards,
    out: Path,
    session: Session,
) -> Figures:
    architecture, objective = model.architecture, section.objective
    setting = Setting(architecture, tokenizer, section.row(architecture), section.packing)
    for shards in (train_shards, held_shards):
        shards.require(tokenizer)
    batches = objective.batches(train_shards, setting, section.batch_size, section.micro_batch, session.seed)
    probe = held_out(objective, held_shards, setting, section.micro_batch)
    model = model.to(session.device)
    predictor = objective.predictor(section.z_loss)
    predictor.at_once = section.logits_at_once
    figures = train(
        model,
        predictor,
        batches,
        section.training,
        out,
        session,
        probe=probe,
        best=f"held_out_{objective.best}",
    )
    with clear_when_full(out):
        session.world.told(lambda: save_model(out / "model", model, tokenizer))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return figures | {"parameters": parameters, "epochs": batches.epochs}
