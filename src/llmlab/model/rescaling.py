"""A trained model's rotary angles changed so that it reads past the length it was trained for; its weights stay.

The scalings are those of `rotary`. What they need beside a factor, the trained length, is the model's own context.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from llmlab.errors import InputError
from llmlab.model.rotary import (
    NTK,
    DynamicNTK,
    Linear,
    Llama3,
    LogN,
    NoScaling,
    Rope,
    RopeInterleaved,
    Scaling,
    YaRN,
)
from llmlab.model.transformer import Architecture, Transformer
from llmlab.recipe import Section, parse

PI = "pi"  # position interpolation, the paper's name of linear
# Each by (how many times longer than trained, trained length). Dynamic angles follow the text: at any length they are
# NTK's of just that length.
SCALINGS: Mapping[str, Callable[[float, int], Scaling]] = {
    "linear": lambda by, trained: Linear(by=by),
    "ntk": lambda by, trained: NTK(by=by),
    "dynamic": lambda by, trained: DynamicNTK(by=1.0, trained=trained),
    "yarn": lambda by, trained: YaRN(by=by, trained=trained),
    "llama3": lambda by, trained: Llama3(by=by, trained=trained),
    "logn": lambda by, trained: LogN(trained=trained),
}


class Rescaling(Section):
    """Rotary angles rescaled for texts that are `factor` times as long as those the model was trained on. A text says
    it too: `yarn`, or `yarn factor=4`."""

    kind: Literal["linear", "ntk", "dynamic", "yarn", "llama3", "logn"] = Field(
        description="how angles change, as model.position.scaling names it; pi: linear"
    )
    factor: float = Field(4.0, description="how many times longer than trained the context becomes; 1 changes nothing")

    @model_validator(mode="before")
    @classmethod
    def _told(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        first, *others = value.split() or [""]
        told = {"kind": first} if "=" not in first else {}
        for field in others if told else [first, *others]:
            name, equals, number = field.partition("=")
            if not equals:
                raise ValueError(f"{field!r} is no setting (write: yarn factor=4)")
            told[name] = number
        return told

    @field_validator("kind", mode="before")
    @classmethod
    def _alias(cls, value: Any) -> Any:
        return "linear" if value == PI else value

    @field_validator("factor")
    @classmethod
    def _longer(cls, value: float) -> float:
        if value < 1:
            raise ValueError(f"{value:g} would shorten the context (1 changes nothing, 4 makes it four times as long)")
        return value

    def scaling(self, trained: int) -> Scaling:
        return SCALINGS[self.kind](self.factor, trained)

    def architecture(self, a: Architecture) -> Architecture:
        """The architecture that reads so. Layers that see a window of their own keep their angles: no distance there
        is new. Errors: InputError for a model without rotary positions, and for one that is rescaled already."""
        if self.factor == 1:
            return a
        rescaled = with_scaling(a, self.scaling(a.context))
        return rescaled.model_copy(update={"context": int(a.context * self.factor)})


def read_rescaling(told: Any, place: str = "rope") -> Rescaling:
    """A `Rescaling` as it is, as a mapping, or as a text. Errors: InputError naming the field that is wrong."""
    return told if isinstance(told, Rescaling) else parse(Rescaling, told, place)


def with_scaling(a: Architecture, scaling: Scaling) -> Architecture:
    """The architecture with its angles scaled, its context as it was."""
    if not isinstance(a.position, Rope | RopeInterleaved):
        raise InputError("rope", f"the model's positions are {a.position.kind}, with no angles to rescale", "rope has")
    if not isinstance(a.position.scaling, NoScaling):
        held = a.position.scaling
        by = f", by {held.by:g}" if isinstance(held, Linear | NTK | DynamicNTK | YaRN | Llama3) else ""
        raise InputError("rope", f"the model's angles are rescaled already ({held.kind}{by})", "leave rope out")
    position = a.position.model_copy(update={"scaling": scaling})
    position.build(a.shape())  # says where a scaling changes nothing
    return a.model_copy(update={"position": position})


def reread(model: Transformer, architecture: Architecture) -> Transformer:
    """The same model read by an architecture that differs in positions, window or context only: it shares every weight
    and module with the given one, quantised ones too, and neither is changed."""
    made = copy.copy(model)
    made._modules = dict(model._modules)
    made.architecture = architecture
    made.position = architecture.position.build(architecture.shape())
    return made
