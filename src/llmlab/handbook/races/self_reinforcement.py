"""A pulled model and a sentence said again and again. Question 6. Needs the weights: `llmlab pull smollm2`."""

from collections.abc import Mapping
from typing import Any

from llmlab.handbook.question import Text
from llmlab.handbook.trials import Trial


def _run(settings: Mapping[str, Any], seed: int) -> dict[str, float]:
    from llmlab.handbook.self_reinforcement import run

    return run(settings, seed)


RACE = Trial(
    name="self_reinforcement",
    title=Text("SmolLM2: a sentence behind n copies of itself", "SmolLM2：同一句话已说过 n 遍之后"),
    arms={"real": {"sentences": "real"}, "random": {"sentences": "random"}},
    measures=tuple(f"{mark}_{copy}" for mark in ("probability", "rising", "whole") for copy in range(9)),
    run=_run,
    listed=False,
)
