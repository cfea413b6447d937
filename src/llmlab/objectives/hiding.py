"""Objectives that hide part of a text and ask for it: masked tokens, T5's spans, GLM's blanks."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from llmlab.data.batch import Batch, SourceBatch
from llmlab.data.corruption import Corruption, Noise, Rows, batch_of
from llmlab.data.pack import Isolated, Mixed
from llmlab.data.sentences import TextPairBatches, TextPairEval, TextPairs, sentence_ends
from llmlab.data.shards import Corpus
from llmlab.errors import InputError
from llmlab.model.rotary import Rope, RopeInterleaved
from llmlab.model.transformer import Architecture
from llmlab.objectives import corrupt
from llmlab.objectives.kind import Asking, Kind, Learning, Ratio, Seen, Setting, check_parts, require, require_apart
from llmlab.objectives.language import NextToken, TokenPrediction
from llmlab.objectives.streams import FromSource, MaskedPair
from llmlab.recipe import KINDS, Section
from llmlab.tokenization.special import CLASS, END, MASK, SEPARATOR, START, sentinels, special_ids
from llmlab.tokenization.tokenizer import Tokenizer

# ---------------------------------------------------------------- masked


class Dynamic(Section):
    """Masks are drawn anew each epoch (Liu et al. 2019, RoBERTa, arXiv 1907.11692)."""

    kind: Literal["dynamic"] = "dynamic"

    @property
    def drawn(self) -> int | None:
        return None


class Static(Section):
    """Masks are drawn for so many copies of the corpus, which then take turns (BERT's data script writes 10)."""

    kind: Literal["static"] = "static"
    copies: int = Field(10, gt=0, description="maskings of the corpus")

    @property
    def drawn(self) -> int | None:
        return self.copies


class Masked(Kind):
    """Some tokens are hidden and predicted from both sides (Devlin et al. 2018, BERT). It gives no likelihood of a
    text, so its figures are of the hidden tokens: the share that is found, and their cross entropy."""

    best: ClassVar[str] = "masked_cross_entropy"
    in_bytes: ClassVar[bool] = False
    kind: Literal["masked"] = "masked"
    rate: float = Field(0.15, gt=0, lt=1, description="share of tokens that are predicted")
    mask: float = Field(0.8, ge=0, le=1, description="share of those that [MASK] stands for")
    random: float = Field(0.1, ge=0, le=1, description="share of those that a random token stands for; the rest stay")
    span: float | None = Field(
        None, ge=1, description="mean tokens of whole spans that are hidden (SpanBERT); null: each token by itself"
    )
    masking: Annotated[Dynamic | Static, *KINDS] = Field(Dynamic(), description="when masks are drawn")
    next_sentence: bool = Field(
        False, description="rows are two texts, and whether the second follows the first is learnt too"
    )

    @model_validator(mode="after")
    def _shares(self) -> Masked:
        if self.mask + self.random > 1:
            raise ValueError(f"mask {self.mask} and random {self.random} are more than 1 together")
        return self

    def special(self, length: int) -> tuple[str, ...]:
        return (MASK, CLASS, SEPARATOR) if self.next_sentence else (MASK,)

    def check(self, model: Architecture, packing: Isolated | Mixed) -> None:
        check_parts(self.kind, model, "bidirectional")
        if self.next_sentence:
            name, classes, segments = f"{self.kind} with next_sentence", model.pooled, model.embedding.segments
            require(classes == 2, name, "pooled", "null" if classes is None else classes, "it has 2 classes: set 2")
            require(segments >= 2, name, "embedding.segments", segments, "two texts are told apart by 2 of them")
        else:
            require(not model.pooled, self.kind, "pooled", model.pooled, "no class is learnt without next_sentence")

    @property
    def standard(self) -> Masked:
        return Masked(next_sentence=self.next_sentence)

    def predictor(self, z_loss: float = 0.0) -> TokenPrediction[Any]:
        return MaskedPair(z_loss) if self.next_sentence else NextToken(z_loss)

    def corruption(self, setting: Setting) -> Corruption:
        (mask_id,) = special_ids(setting.tokenizer, [MASK], self.kind)
        words = np.array([id for id in range(setting.tokenizer.vocab_size) if id not in setting.tokenizer.special_ids])
        special = np.array(sorted(setting.tokenizer.special_ids))

        def learn(rows: Rows, noise: Noise) -> Batch:
            hideable_BT = rows.learnt_BT & ~np.isin(rows.tokens_BT, special)
            if self.span is None:
                spans = corrupt.single_tokens(hideable_BT, noise[0], self.rate)
            else:
                run = corrupt.pieces(rows.document_BT, hideable_BT)
                spans = corrupt.whole_spans(run, noise[0], self.rate, self.span)
            shares = self.mask, self.random
            ids_BT = corrupt.masked(rows.tokens_BT, spans, noise[1], noise[2], shares, mask_id, words)
            order_BT = np.zeros_like(rows.position_BT)
            return batch_of(ids_BT, rows.tokens_BT, spans.hidden_BT, rows.position_BT, order_BT, rows.document_BT)

        return Corruption(learn, 3, self._name, self.masking.drawn)

    def batches(self, corpus: Corpus, setting: Setting, rows: int, micro: int, seed: int) -> Learning:
        if not self.next_sentence:
            return super().batches(corpus, setting, rows, micro, seed)
        return TextPairBatches(self._pairs(corpus, setting, self.corruption(setting)), rows, micro, seed)

    def held(self, corpus: Corpus, setting: Setting, rows: int) -> Asking:
        if not self.next_sentence:
            return super().held(corpus, setting, rows)
        return TextPairEval(self._pairs(corpus, setting, self.asked(setting)), rows)

    def _pairs(self, corpus: Corpus, setting: Setting, hide: Corruption) -> TextPairs:
        begin, separator = special_ids(setting.tokenizer, [CLASS, SEPARATOR], self.kind)
        ends_V, frame = sentence_ends(setting.tokenizer), (begin, separator)
        return TextPairs(corpus, setting.length, ends_V, frame, hide)

    def ratios(self, seen: Seen) -> dict[str, Ratio]:
        found = {
            "masked_accuracy": Ratio(seen.right, seen.tokens),
            "masked_cross_entropy": Ratio(seen.nats, seen.tokens),
        }
        return found | ({"next_sentence_accuracy": Ratio(seen.right_pairs, seen.pairs)} if self.next_sentence else {})


# ---------------------------------------------------------------- spans


class Spans(Kind):
    """Spans are replaced by sentinels, and a decoder says what stood there (Raffel et al. 2019, T5, arXiv 1910.10683).
    Its figure is the likelihood of what was hidden, sentinels and end included, by the bytes of what was hidden."""

    best: ClassVar[str] = "spans_bits_per_hidden_byte"
    kind: Literal["spans"] = "spans"
    rate: float = Field(0.15, gt=0, lt=1, description="share of tokens that are hidden")
    mean: float = Field(3.0, ge=1, description="mean tokens of a span")

    def special(self, length: int) -> tuple[str, ...]:
        """As many sentinels as a row has spans, in training or when asked."""
        usual = type(self).model_fields
        asked = _most_spans(length, usual["rate"].default, usual["mean"].default)
        return sentinels(max(_most_spans(length, self.rate, self.mean), asked))

    def check(self, model: Architecture, packing: Isolated | Mixed) -> None:
        check_parts(self.kind, model, "causal", encoder=True)
        require_apart(self.kind, packing)

    def settled(self, model: Architecture, tokenizer: Tokenizer) -> Architecture:
        """What the decoder begins with, where the architecture does not say: bos, or eos where there is none."""
        start = _end(tokenizer) if tokenizer.bos_id is None else tokenizer.bos_id
        return model if model.start_id is not None else model.model_copy(update={"start_id": start})

    def predictor(self, z_loss: float = 0.0) -> FromSource:
        return FromSource(z_loss)

    def corruption(self, setting: Setting) -> Corruption:
        ids = np.array(special_ids(setting.tokenizer, self.special(setting.length), self.kind), np.int64)
        end_id, begin_id = _end(setting.tokenizer), self.settled(setting.model, setting.tokenizer).start_id
        assert begin_id is not None

        def learn(rows: Rows, noise: Noise) -> Batch:
            run = corrupt.pieces(rows.document_BT, rows.tokens_BT != end_id)
            spans = corrupt.whole_spans(run, noise[0], self.rate, self.mean)
            source, said = corrupt.to_sentinels(rows.tokens_BT, rows.document_BT, spans, ids, begin_id, end_id)
            read, says = _batch(source), _batch(said)
            return SourceBatch(says.ids_BT, says.targets_BT, says.at, source_BS=read.ids_BT, source_at=read.at)

        return Corruption(learn, 1, self._name)

    def ratios(self, seen: Seen) -> dict[str, Ratio]:
        return {"spans_bits_per_hidden_byte": Ratio(seen.bits, seen.bytes)}


class Blanks(Kind):
    """Spans are blanked out and said, in shuffled order, behind the text (Du et al. 2021, GLM, arXiv 2103.10360).

    The position part's `axes` says how they are counted. Left out: lengths of spans from a Poisson distribution; they
    are cut as T5's. Its figure is the likelihood of what was hidden, ends included, by the bytes of what was hidden.
    """

    best: ClassVar[str] = "blanks_bits_per_hidden_byte"
    kind: Literal["blanks"] = "blanks"
    rate: float = Field(0.15, gt=0, lt=1, description="share of tokens that are blanked out")
    mean: float = Field(3.0, ge=1, description="mean tokens of a span")

    def special(self, length: int) -> tuple[str, ...]:
        return MASK, START, END

    def reading(self, length: int) -> int:
        """Each span brings a blank and a start."""
        fits = [size for size in range(2, length + 1) if size + 2 * _most_spans(size, self.rate, self.mean) <= length]
        if not fits:
            raise InputError("pretrain.length", f"{length} tokens are too few for a blank", "at least 4")
        return fits[-1]

    def check(self, model: Architecture, packing: Isolated | Mixed) -> None:
        check_parts(self.kind, model, "blank" if _axes(model) == 2 else "prefix")
        require_apart(self.kind, packing)

    def predictor(self, z_loss: float = 0.0) -> NextToken:
        return NextToken(z_loss)

    def corruption(self, setting: Setting) -> Corruption:
        mask_id, start_id, end_id = special_ids(setting.tokenizer, self.special(setting.length), self.kind)
        axes, eos_id = _axes(setting.model), _end(setting.tokenizer)
        if setting.model.mask.kind == "blank":  # what generation looks for must be what was trained
            _same("start_id", setting.model.mask.start_id, START, start_id)
            _same("blank_ids", setting.model.mask.blank_ids[0], MASK, mask_id)

        def learn(rows: Rows, noise: Noise) -> Batch:
            run = corrupt.pieces(rows.document_BT, rows.tokens_BT != eos_id)
            spans = corrupt.whole_spans(run, noise[0], self.rate, self.mean)
            marks = mask_id, start_id, end_id
            return _batch(corrupt.to_blanks(rows.tokens_BT, rows.document_BT, spans, noise[1], marks, axes))

        return Corruption(learn, 2, self._name)

    def ratios(self, seen: Seen) -> dict[str, Ratio]:
        return {"blanks_bits_per_hidden_byte": Ratio(seen.bits, seen.bytes)}


def _axes(model: Architecture) -> int:
    return model.position.axes if isinstance(model.position, Rope | RopeInterleaved) else 1


def _most_spans(length: int, rate: float, mean: float) -> int:
    return int(corrupt.spans_in(np.arange(1, length + 1), rate, mean)[1].max())


def _end(tokenizer: Tokenizer) -> int:
    if tokenizer.eos_id is None:
        raise InputError("tokenizer", "has no eos token, which ends every document of a corpus")
    return tokenizer.eos_id


def _same(field: str, given: int, token: str, id: int) -> None:
    if given != id:
        raise InputError(f"model.mask.{field}", f"is {given}, the tokenizer's {token} has the id {id}", f"set {id}")


def _batch(laid: corrupt.Laid) -> Batch:
    ids, targets, learnt, position, order, document = laid
    return batch_of(ids, targets, learnt, position, order, document)
