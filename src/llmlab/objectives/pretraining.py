"""The objectives that read a text in some order, and the union of all that a model can be pretrained by."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from llmlab.data.batch import Batch
from llmlab.data.corruption import Corruption, Noise, Rows, batch_of
from llmlab.data.pack import EvalBatches, Isolated, Mixed
from llmlab.data.shards import Corpus
from llmlab.model.transformer import Architecture
from llmlab.objectives import corrupt
from llmlab.objectives.against import Against, Nothing
from llmlab.objectives.hiding import Blanks, Masked, Spans
from llmlab.objectives.kind import Kind, Ratio, Seen, Setting, check_parts, require
from llmlab.objectives.language import NextToken, TokenPrediction
from llmlab.objectives.streams import QueryStream
from llmlab.recipe import KINDS
from llmlab.tokenization.special import START
from llmlab.tokenization.tokenizer import Tokenizer


class Causal(Kind):
    """Each token from those before it (Radford et al. 2018, GPT)."""

    best: ClassVar[str] = "bits_per_byte"
    whole_text: ClassVar[bool] = True
    next_token: ClassVar[bool] = True
    kind: Literal["causal"] = "causal"
    against: Against = Field(Nothing(), description="what is held against repetition beside the likelihood")

    def check(self, model: Architecture, packing: Isolated | Mixed) -> None:
        check_parts(self.kind, model, "causal")

    def predictor(self, z_loss: float = 0.0) -> TokenPrediction[Any]:
        return self.against.predictor(z_loss)

    def corruption(self, setting: Setting) -> Corruption:
        return self.against.corruption(setting)

    def held(self, corpus: Corpus, setting: Setting, rows: int) -> EvalBatches:
        """With at least half a row of context a token, where its document has it."""
        return EvalBatches(corpus, setting.length, rows, setting.packing, setting.length // 2)

    def ratios(self, seen: Seen) -> dict[str, Ratio]:
        return {"bits_per_byte": Ratio(seen.bits, seen.bytes)}


class Prefix(Kind):
    """The first tokens of each document see one another; the others are predicted from left to right (Raffel et al.
    2019, prefix LM; Dong et al. 2019, UniLM). Its figure is of the suffixes alone: how well, given the prefix."""

    best: ClassVar[str] = "suffix_bits_per_byte"
    next_token: ClassVar[bool] = True
    kind: Literal["prefix"] = "prefix"
    length: int | None = Field(
        None, ge=0, description="tokens of the prefix, 0: causal; null: drawn evenly for each document of a row"
    )
    learn: Literal["suffix", "all"] = Field(
        "suffix",
        description="all: the prefix's tokens too, though each but the last sees what it is to predict there",
    )

    def check(self, model: Architecture, packing: Isolated | Mixed) -> None:
        check_parts(self.kind, model, "prefix")

    def predictor(self, z_loss: float = 0.0) -> NextToken:
        return NextToken(z_loss)

    def corruption(self, setting: Setting) -> Corruption:
        return Corruption(self._learn, 1, self._name)

    def _learn(self, rows: Rows, noise: Noise) -> Batch:
        document = corrupt.pieces(rows.document_BT)
        seen_BT = np.maximum(corrupt.prefix_lengths(document, noise[0], self.length) - 1, 0)
        order_BT = np.maximum(document.index_BT - seen_BT, 0)
        learnt_BT = rows.learnt_BT & ((document.index_BT >= seen_BT) | (self.learn == "all"))
        return batch_of(rows.before_BT, rows.tokens_BT, learnt_BT, rows.position_BT, order_BT, rows.document_BT)

    def ratios(self, seen: Seen) -> dict[str, Ratio]:
        return {"suffix_bits_per_byte": Ratio(seen.bits, seen.bytes)}


class Permutation(Kind):
    """Each token from those before it in a random order of its document (Yang et al. 2019, XLNet, arXiv 1906.08237).

    Only the last of the order are predicted. Read from left to right, the same model gives the likelihood of a text,
    which is its figure. Left out: spans of targets, and memory of the row before.
    """

    best: ClassVar[str] = "bits_per_byte"
    whole_text: ClassVar[bool] = True
    kind: Literal["permutation"] = "permutation"
    predict: int = Field(6, ge=1, description="k: the last 1/k of each order is predicted, one token at least")

    def check(self, model: Architecture, packing: Isolated | Mixed) -> None:
        check_parts(self.kind, model, "bidirectional", streams=2)
        require(not model.pooled, self.kind, "pooled", model.pooled, "no class is learnt")

    def predictor(self, z_loss: float = 0.0) -> QueryStream:
        return QueryStream(z_loss)

    def corruption(self, setting: Setting) -> Corruption:
        return Corruption(self._learn, 1, self._name)

    def _learn(self, rows: Rows, noise: Noise) -> Batch:
        document = corrupt.pieces(rows.document_BT)
        rank_BT = corrupt.permuted(document, noise[0])
        count_BT = np.maximum(document.size_BT // self.predict, 1)
        learnt_BT = rows.learnt_BT & (rank_BT >= document.size_BT - count_BT)
        return batch_of(rows.tokens_BT, rows.tokens_BT, learnt_BT, rows.position_BT, rank_BT, rows.document_BT)

    def asked(self, setting: Setting) -> Corruption:
        def in_order(rows: Rows, noise: Noise) -> Batch:
            order_BT = corrupt.pieces(rows.document_BT).index_BT
            tokens_BT = rows.tokens_BT
            return batch_of(tokens_BT, tokens_BT, rows.learnt_BT, rows.position_BT, order_BT, rows.document_BT)

        return Corruption(in_order)

    def held(self, corpus: Corpus, setting: Setting, rows: int) -> EvalBatches:
        """With at least half a row of context a token, where its document has it."""
        return EvalBatches(corpus, setting.length, rows, setting.packing, setting.length // 2, self.asked(setting))

    def ratios(self, seen: Seen) -> dict[str, Ratio]:
        return {"bits_per_byte": Ratio(seen.bits, seen.bytes)}


PretrainObjective = Annotated[Causal | Prefix | Masked | Permutation | Spans | Blanks, *KINDS]


def made_for(model: Architecture, tokenizer: Tokenizer) -> Kind:
    """The objective that an architecture and its tokenizer are made for, where nothing says by which it was trained."""
    if model.encoder_layers:
        return Spans()
    if model.streams == 2:
        return Permutation()
    match model.mask.kind:
        case "bidirectional":
            return Masked(next_sentence=model.pooled == 2 and model.embedding.segments >= 2)
        case "blank":
            return Blanks()
        case "prefix":
            return Prefix() if tokenizer.token_id(START) is None else Blanks()
        case _:
            return Causal()
