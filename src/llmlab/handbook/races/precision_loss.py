"""A small model trained here in float32, and what other precisions cost it. Question 14.

Rates are those of the race of parts. SmolLM2 will not do: its shipped weights are already of four bits.
"""

from collections.abc import Mapping
from typing import Any

from llmlab.handbook.question import Text
from llmlab.handbook.races.precision_speed import METHODS
from llmlab.handbook.trials import Trial


def run(settings: Mapping[str, Any], seed: int) -> dict[str, float]:
    from llmlab.handbook.precisions import losses

    return losses(settings, seed)


RACE = Trial(
    name="precision_loss",
    title=Text("precisions: what they cost in loss", "各种精度：损失代价"),
    arms={"trained": {"steps": 500, "text_rows": 16, "rate": 2e-2, "adamw_rate": 1e-2}},
    run=run,
    listed=False,
    measures=tuple(f"{name}{method}" for name in ("", "planted ") for method in METHODS),
)
