"""A trained model read past its length in another way: angles rescaled, or a window. The weights stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from llmlab.model.rescaling import SCALINGS, reread, with_scaling
from llmlab.model.transformer import Architecture, Transformer

SINKS = 4  # as StreamingLLM has it (Xiao et al. 2023, arXiv 2309.17453)


def rescaled(model: Transformer, method: str, times: int, trained: int) -> Transformer:
    """The model as `method` reads texts of `times` its trained length; it shares the given one's weights.

    Errors: InputError for a model whose positions are not rotary, where the method rescales angles.
    """
    return reread(model, METHODS[method](model.architecture, times, trained))


def _angles(a: Architecture, times: int, trained: int, kind: str) -> Architecture:
    return with_scaling(a, SCALINGS[kind](times, trained))


def _window(a: Architecture, times: int, trained: int, sinks: int) -> Architecture:
    attention: Any = a.keyed
    return a.model_copy(update={"attention": attention.model_copy(update={"window": trained - sinks, "sinks": sinks})})


METHODS: dict[str, Callable[[Architecture, int, int], Architecture]] = {
    **{kind: partial(_angles, kind=kind) for kind in ("linear", "ntk", "dynamic", "yarn", "logn")},
    "window": partial(_window, sinks=0),
    "sinks": partial(_window, sinks=SINKS),
}
