"""A trained model read past its length in another way: angles rescaled, or a window. The weights stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from llmlab.errors import InputError
from llmlab.model import rotary
from llmlab.model.rotary import Rope, RopeInterleaved
from llmlab.model.transformer import Architecture, Transformer

SINKS = 4  # as StreamingLLM has it (Xiao et al. 2023, arXiv 2309.17453)


def rescaled(model: Transformer, method: str, times: int, trained: int) -> Transformer:
    """The model as `method` reads texts of `times` its trained length; it shares the given one's weights.

    Errors: InputError for a model whose positions are not rotary, where the method rescales angles.
    """
    a = METHODS[method](model.architecture, times, trained)
    with torch.device("meta"):
        made = Transformer(a, model.vocab_size)
    made.load_state_dict(model.state_dict(), assign=True)
    return made.eval()


def _angles(scaling: Callable[[int, int], rotary.Scaling]) -> Callable[[Architecture, int, int], Architecture]:
    def change(a: Architecture, times: int, trained: int) -> Architecture:
        if not isinstance(a.position, Rope | RopeInterleaved):
            raise InputError("model.position", f"{a.position.kind} has no angles to rescale", "rope has")
        position = a.position.model_copy(update={"scaling": scaling(times, trained)})
        return a.model_copy(update={"position": position})

    return change


def _window(sinks: int) -> Callable[[Architecture, int, int], Architecture]:
    def change(a: Architecture, times: int, trained: int) -> Architecture:
        attention: Any = a.keyed
        return a.model_copy(
            update={"attention": attention.model_copy(update={"window": trained - sinks, "sinks": sinks})}
        )

    return change


METHODS: dict[str, Callable[[Architecture, int, int], Architecture]] = {
    "linear": _angles(lambda times, trained: rotary.Linear(by=times)),
    "ntk": _angles(lambda times, trained: rotary.NTK(by=times)),
    "dynamic": _angles(lambda times, trained: rotary.DynamicNTK(by=1.0, trained=trained)),
    "yarn": _angles(lambda times, trained: rotary.YaRN(by=times, trained=trained)),
    "logn": _angles(lambda times, trained: rotary.LogN(trained=trained)),
    "window": _window(0),
    "sinks": _window(SINKS),
}
