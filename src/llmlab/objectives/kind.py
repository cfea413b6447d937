"""What every objective of pretraining is: settings that say what is done to rows of text, what is predicted there, and
which figure tells how well.

Each kind names what an architecture must have for it and what the tokenizer must know. Figures have names of their own
where they mean something of their own: `bits_per_byte` is the likelihood of a whole text and nothing else, so that no
two figures of one name are of unlike things.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple

import numpy as np

from llmlab.data.batch import IGNORE, Batch
from llmlab.data.corruption import Corruption, Int64
from llmlab.data.pack import EvalBatches, Isolated, Mixed, PackedBatches
from llmlab.data.sentences import TextPairBatches, TextPairEval
from llmlab.data.shards import Corpus
from llmlab.errors import InputError
from llmlab.model.heads import NoHead
from llmlab.model.transformer import Architecture
from llmlab.objectives.language import TokenPrediction
from llmlab.recipe import Section
from llmlab.tokenization.tokenizer import Tokenizer

Learning = PackedBatches | TextPairBatches
Asking = EvalBatches | TextPairEval


class Setting(NamedTuple):
    """What an objective is about to be trained or measured on."""

    model: Architecture
    tokenizer: Tokenizer
    length: int  # tokens a row that the model reads
    packing: Isolated | Mixed = Isolated()


class Seen(NamedTuple):
    """Sums over held-out batches: nats and count of the predicted tokens, how many were right, the bytes of text they
    stand for, and the pairs of texts and how many of them were right."""

    nats: float = 0.0
    tokens: float = 0.0
    right: float = 0.0
    bytes: float = 0.0
    pairs: float = 0.0
    right_pairs: float = 0.0

    @property
    def bits(self) -> float:
        return self.nats / math.log(2)

    @staticmethod
    def sum(parts: Iterable[Seen]) -> Seen:
        return Seen(*map(sum, zip(*parts, strict=True)))


class Ratio(NamedTuple):
    """A figure as what it is the ratio of. Per 0: there is nothing to say."""

    total: float
    per: float


class Kind(Section, ABC):
    """An objective's settings."""

    kind: str
    best: ClassVar[str]  # which of its figures is to be made small
    whole_text: ClassVar[bool] = False  # whether its figure is the likelihood of every byte of a text
    in_bytes: ClassVar[bool] = True  # whether its figures are by bytes, which a tokenizer may not keep
    next_token: ClassVar[bool] = False  # whether the model then goes on with a text, so that it can be tuned and asked

    def special(self, length: int) -> tuple[str, ...]:
        """The special tokens that a tokenizer must have for rows of this length."""
        return ()

    @abstractmethod
    def check(self, model: Architecture, packing: Isolated | Mixed) -> None:
        """InputError, by name, where the architecture lacks what the objective needs."""

    @abstractmethod
    def predictor(self, z_loss: float = 0.0) -> TokenPrediction[Any]:
        """The terms of the loss."""

    @abstractmethod
    def corruption(self, setting: Setting) -> Corruption:
        """What it does to rows in training."""

    @property
    def standard(self) -> Kind:
        """The objective by which held-out text is asked: its default settings, so that figures of one name are of like
        things however a model was trained."""
        return type(self).model_validate({})

    def asked(self, setting: Setting) -> Corruption:
        """What is done to held-out rows."""
        return self.standard.corruption(setting)

    def settled(self, model: Architecture, tokenizer: Tokenizer) -> Architecture:
        """The architecture with what only the tokenizer can tell."""
        return model

    def reading(self, length: int) -> int:
        """Tokens of text that make a row of `length`."""
        return length

    def batches(self, corpus: Corpus, setting: Setting, rows: int, micro: int, seed: int) -> Learning:
        """Training batches of `rows` rows, `micro` at a time."""
        return PackedBatches(
            corpus, self.reading(setting.length), rows, micro, seed, setting.packing, self.corruption(setting)
        )

    def held(self, corpus: Corpus, setting: Setting, rows: int) -> Asking:
        """Batches of held-out text, the same for every model and seed."""
        length = self.standard.reading(setting.length)
        return EvalBatches(corpus, length, rows, setting.packing, 0, self.asked(setting))

    @abstractmethod
    def ratios(self, seen: Seen) -> dict[str, Ratio]:
        """What is reported of held-out text, by names that say what it is a figure of."""

    def figures(self, seen: Seen) -> dict[str, float]:
        """The same as numbers. InputError where there was nothing to ask."""
        ratios = self.ratios(seen)
        if empty := [name for name, ratio in ratios.items() if not ratio.per]:
            raise InputError("held-out text", f"holds nothing to take {empty[0]} from", "hold out more of the text")
        return {name: ratio.total / ratio.per for name, ratio in ratios.items()}

    @property
    def _name(self) -> str:
        """Tells the state of one objective from that of another."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True)


def require(condition: bool, kind: str, field: str, has: object, needs: str) -> None:
    """InputError unless the condition holds."""
    if not condition:
        raise InputError(f"model.{field}", f"{has} cannot go with the objective {kind}", needs)


def check_parts(kind: str, model: Architecture, *masks: str, streams: int = 1, encoder: bool = False) -> None:
    """What all objectives ask: a head, the mask, and no more parts than they train."""
    require(not isinstance(model.head, NoHead), kind, "head", "none", "it predicts tokens: use linear or transformed")
    require(model.mask.kind in masks, kind, "mask", model.mask.kind, f"use {' or '.join(masks)}")
    hint = "two streams belong to permutation" if streams == 1 else "it predicts from a second stream: set 2"
    require(model.streams == streams, kind, "streams", model.streams, hint)
    hint = "set it to the encoder's blocks, as model.encoder_layers=4" if encoder else "an encoder belongs to spans"
    require(bool(model.encoder_layers) == encoder, kind, "encoder_layers", model.encoder_layers, hint)


def require_apart(kind: str, packing: Isolated | Mixed) -> None:
    if not isinstance(packing, Isolated):
        problem = f"{packing.kind} cannot go with the objective {kind}, which lays each document out anew"
        raise InputError("pretrain.packing", problem, "use isolated")


# ---------------------------------------------------------------- how well


def look(predictor: TokenPrediction[Any], model: Any, batch: Batch, lengths_V: Int64) -> Seen:
    """The sums over one held-out batch, in float32. `lengths_V` has the bytes of each token, 0 for special ones.

    Call it without gradient and in evaluation mode, as `train` calls its probes.
    """
    terms = predictor(model, batch)
    right, count = terms.figures["accuracy"]
    right_pairs, pairs = terms.figures.get("next_sentence_accuracy", (0.0, 0.0))
    targets = batch.targets_BT[batch.targets_BT != IGNORE].numpy()
    nats, covered = float(terms.sums["cross_entropy"]), int(lengths_V[targets].sum())
    return Seen(nats, count, float(right), covered, pairs, float(right_pairs))


def byte_lengths(tokenizer: Tokenizer) -> Int64:
    """Bytes of text that each id stands for, 0 for special tokens. [V]."""
    special = tokenizer.special_ids
    return np.array([0 if i in special else len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)])
