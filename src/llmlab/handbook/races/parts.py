"""A little language model, trained whole, and what it loses when one of its parts is taken away. Question 4.

Rate and steps were tried on seed 100 alone.
"""

from collections.abc import Mapping
from typing import Any

from llmlab.handbook.question import Text
from llmlab.handbook.trials import Trial


def run(settings: Mapping[str, Any], seed: int) -> Mapping[str, float]:
    from llmlab.handbook.little_model import ablated

    return ablated(settings, seed)


PARTS = ("residual", "norm", "position", "mask", "feedforward", "heads")

RACE = Trial(
    name="parts",
    title=Text("a trained model without one of its parts", "训练好的模型逐一去掉某个部件"),
    arms={"trained": {"steps": 500, "rows": 16, "rate": 2e-2, "adamw_rate": 1e-2}},
    run=run,
    measures=("whole", *(f"without {part}" for part in PARTS)),
)
