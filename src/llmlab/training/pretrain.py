"""The `pretrain` stage: a model from its seed, trained on packed documents, its best weights kept."""

from pathlib import Path

from pydantic import Field
from torch import nn

from llmlab.checkpoints.native import save_model
from llmlab.data.pack import EvalBatches, Isolated, PackedBatches, Packing
from llmlab.data.shards import TokenShards
from llmlab.errors import InputError
from llmlab.model.transformer import Architecture
from llmlab.objectives.language import NextToken
from llmlab.recipe import Section
from llmlab.stages import Figures, Session
from llmlab.tokenization.tokenizer import Tokenizer
from llmlab.training.loop import Training, train
from llmlab.training.optimizers import Muon
from llmlab.training.probe import bits_per_byte
from llmlab.training.state import clear_when_full


def _training() -> Training:
    return Training(steps=300, optimizer=Muon())


class Pretrain(Section):
    """Next-token training on the documents."""

    length: int | None = Field(None, gt=0, description="tokens a row; null: the context of the architecture")
    batch_size: int = Field(16, gt=0, description="rows an optimizer step")
    micro_batch: int = Field(16, gt=0, description="rows that go through the model at once; bounds memory only")
    packing: Packing = Field(default_factory=Isolated, description="whether documents in a row see each other")
    z_loss: float = Field(0.0, ge=0.0, description="weight of the squared log of the softmax's denominator")
    training: Training = Field(default_factory=_training, description="steps, optimizer, schedule, checkpoints")


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

    The figure `held_out_bits_per_byte` is taken with at least half a row of context a token where its document has
    it. Raises `InputError` for shards of another tokenizer, a length beyond the context, a corpus shorter than a row.
    """
    length = section.length or architecture.context
    if length > architecture.context:
        raise InputError("pretrain.length", f"{length} is beyond the model's context of {architecture.context}")
    for shards in (train_shards, held_shards):
        shards.require(tokenizer)
    batches = PackedBatches(
        train_shards, length, section.batch_size, section.micro_batch, session.seed, section.packing
    )
    held = EvalBatches(held_shards, length, section.micro_batch, section.packing, overlap=length // 2)
    model = architecture.build(tokenizer.vocab_size, session.seed).to(session.device)

    def probe(model: nn.Module) -> dict[str, float]:
        return {"held_out_bits_per_byte": bits_per_byte(model, held)}

    figures = train(
        model,
        NextToken(section.z_loss),
        batches,
        section.training,
        out,
        session,
        probe=probe,
        best="held_out_bits_per_byte",
    )
    with clear_when_full(out):
        save_model(out / "model", model, tokenizer)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return figures | {"parameters": parameters, "epochs": batches.epochs}
