"""What a race measures of a finished life: a closed set of names, each with its direction and the family that takes it.

A family is one pass over the model that gives several measures at once. `VERSION` is raised when a way of measuring
changes: it is in the key under which measured values are kept, so old ones are then measured again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field, field_validator

from llmlab.checkpoints.bundle import Bundle
from llmlab.data.pack import EvalBatches, Packing
from llmlab.data.shards import TokenShards
from llmlab.errors import InputError, unknown
from llmlab.evaluation.extrapolation import MULTIPLES, bits_beyond
from llmlab.evaluation.onward import bits_onward
from llmlab.evaluation.rescaled import METHODS, rescaled
from llmlab.inference.engine import without_dropout
from llmlab.objectives.kind import Kind, Seen, Setting, byte_lengths, look
from llmlab.objectives.language import NextToken
from llmlab.objectives.pretraining import Causal
from llmlab.recipe import Section

VERSION = 1
_ROWS = 16  # of a batch of held-out text


class Measure(NamedTuple):
    """A figure of a model. `compares` is what arms must have in common for it to be comparable."""

    name: str
    family: Literal["held_out", "context", "onward", "length", "rescaled", "cost"]
    unit: str
    compares: tuple[Literal["text", "tokenizer", "length", "context"], ...] = ()
    better: Literal["higher", "lower"] = "lower"


ASKED: tuple[Literal["text", "tokenizer", "length"], ...] = ("text", "tokenizer", "length")  # what is hidden is tokens

MEASURES = {
    measure.name: measure
    for measure in (
        Measure("bits_per_byte", "held_out", "bits per byte", ("text",)),
        Measure("bits_per_byte@context", "context", "bits per byte", ("text", "context")),
        Measure("onward_bits_per_byte", "onward", "bits per byte of next tokens, from those before alone", ASKED),
        Measure("loss", "held_out", "nats per token", ("text", "tokenizer")),
        Measure("suffix_bits_per_byte", "held_out", "bits per byte of the suffixes", ASKED),
        Measure("masked_accuracy", "held_out", "share of masked tokens found", ASKED, "higher"),
        Measure("masked_cross_entropy", "held_out", "nats per masked token", ASKED),
        Measure("next_sentence_accuracy", "held_out", "share of pairs told", ASKED, "higher"),
        Measure("spans_bits_per_hidden_byte", "held_out", "bits per hidden byte", ASKED),
        Measure("blanks_bits_per_hidden_byte", "held_out", "bits per hidden byte", ASKED),
        *(
            Measure(f"bits_per_byte@{k}x", "length", "bits per byte", ("text", "tokenizer", "length"))
            for k in MULTIPLES
        ),
        *(
            Measure(f"{method}@{k}x", "rescaled", "bits per byte", ("text", "tokenizer", "length"))
            for method in METHODS
            for k in MULTIPLES[1:]
        ),
        Measure("seconds", "cost", "seconds of training"),
        Measure("peak_bytes", "cost", "bytes, the process included"),
        Measure("parameters", "cost", "weights"),
    )
}


class Compare(Section):
    """What `llmlab compare` measures of this recipe where the command line names nothing."""

    measures: tuple[str, ...] = Field(
        ("bits_per_byte",), min_length=1, description=f"of a finished arm: {', '.join(MEASURES)}"
    )

    @field_validator("measures")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(measure.name for measure in read_measures(names, "measures"))
        except InputError as error:
            raise ValueError(f"{error.problem} ({error.hint})") from None


def read_measures(names: Sequence[str], place: str = "--measure") -> list[Measure]:
    """The measures of these names, each once. Errors: InputError for a name that does not exist."""
    for name in names:
        if name not in MEASURES:
            raise unknown(place, name, MEASURES)
    return [MEASURES[name] for name in dict.fromkeys(names)]


@dataclass(frozen=True)
class Finished:
    """A life at its end. `length` is the tokens of a training row; `stages` the manifests of what this life ran, and
    `objective` what it was pretrained by."""

    bundle: Bundle
    held_out: TokenShards | None
    length: int | None
    packing: Packing
    stages: Sequence[Mapping[str, Any]]
    objective: Kind = field(default_factory=Causal)


Values = dict[str, float | str]  # a number, or the reason why there is none


def take(family: str, life: Finished) -> Values:
    """All measures of one family; where a number does not exist, in its place the reason."""
    if family in ("length", "rescaled") and not life.objective.next_token:
        return {measure.name: _none(life) for measure in MEASURES.values() if measure.family == family}
    values = FAMILIES[family](life)
    return {
        name: value if isinstance(value, str) or math.isfinite(value) else f"{value} is no finite number"
        for name, value in values.items()
    }


def _none(life: Finished) -> str:
    return f"the objective {life.objective.kind} gives no such figure"


def _held_out(life: Finished) -> Values:
    """The objective's own figures; and of every held-out token once, with half a training row of context at least
    where its document has it, where the model can be read from left to right."""
    values: Values = {measure.name: _none(life) for measure in MEASURES.values() if measure.family == "held_out"}
    if life.objective.whole_text or life.objective.next_token:
        seen, text_bytes = _seen(life.objective if life.objective.whole_text else Causal(), life)
        values |= {"bits_per_byte": seen.bits / text_bytes, "loss": seen.nats / seen.tokens}
    if not life.objective.whole_text:
        values |= life.objective.figures(_seen(life.objective, life)[0])
    return values


def _seen(objective: Kind, life: Finished) -> tuple[Seen, int]:
    """What an objective sees of the held-out text, and the bytes of that text."""
    assert life.held_out is not None
    assert life.length is not None
    assert life.bundle.tokenizer is not None
    model, tokenizer = life.bundle.model, life.bundle.tokenizer
    setting = Setting(life.bundle.architecture, tokenizer, life.length, life.packing)
    predictor, lengths_V = objective.predictor(), byte_lengths(tokenizer)
    with torch.inference_mode(), without_dropout(model):
        parts = [look(predictor, model, batch, lengths_V) for batch in objective.held(life.held_out, setting, _ROWS)]
    return Seen.sum(parts), life.held_out.text_bytes


def _context(life: Finished) -> Values:
    """The same in windows of the model's context, whatever the rows that it was trained on."""
    nats, batches = _windows(life, life.bundle.model.architecture.context)
    return {"bits_per_byte@context": nats / math.log(2) / batches.text_bytes}


def _onward(life: Finished) -> Values:
    """The next token, asked of each model as its objective taught it to say one."""
    assert life.held_out is not None
    assert life.length is not None
    assert life.bundle.tokenizer is not None
    bits = bits_onward(life.bundle.model, life.bundle.tokenizer, life.objective, life.held_out, life.length)
    return {"onward_bits_per_byte": bits}


def _windows(life: Finished, length: int) -> tuple[float, EvalBatches]:
    assert life.held_out is not None
    batches = EvalBatches(life.held_out, length, _ROWS, life.packing, overlap=length // 2)
    model, objective, nats = life.bundle.model, NextToken(), 0.0
    with torch.inference_mode(), without_dropout(model):
        for batch in batches:
            nats += float(objective(model, batch).sums["cross_entropy"])
    return nats, batches


def _length(life: Finished) -> Values:
    """The same scored tokens at every multiple of the trained length; a refusal of the model is its reason."""
    assert life.held_out is not None
    assert life.length is not None
    assert life.bundle.tokenizer is not None
    found = bits_beyond(life.bundle.model, life.bundle.tokenizer, life.held_out, life.length)
    return {
        f"bits_per_byte@{k}x": f"{value.place} {value.problem}" if isinstance(value, InputError) else value
        for k, value in found.items()
    }


def _rescaled(life: Finished) -> Values:
    """As `_length`, the model read in another way at each multiple."""
    assert life.held_out is not None
    assert life.length is not None
    assert life.bundle.tokenizer is not None
    values: Values = {}
    for method in METHODS:
        for k in MULTIPLES[1:]:
            try:
                model = rescaled(life.bundle.model, method, k, life.length)
                value = bits_beyond(model, life.bundle.tokenizer, life.held_out, life.length, (k,))[k]
            except InputError as refusal:
                value = refusal
            values[f"{method}@{k}x"] = f"{value.place} {value.problem}" if isinstance(value, InputError) else value
    return values


def _cost(life: Finished) -> Values:
    """Time and the largest resident memory of the stages, and the weights of the model that came out.

    The memory is that of the whole process, which arms before may have warmed: small differences say nothing.
    """
    return {
        "seconds": float(sum(stage["seconds"] for stage in life.stages)),
        "peak_bytes": float(max(stage["peak_bytes"] for stage in life.stages)),
        "parameters": float(sum(parameter.numel() for parameter in life.bundle.model.parameters())),
    }


FAMILIES: dict[str, Callable[[Finished], Values]] = {
    "held_out": _held_out,
    "context": _context,
    "onward": _onward,
    "length": _length,
    "rescaled": _rescaled,
    "cost": _cost,
}
