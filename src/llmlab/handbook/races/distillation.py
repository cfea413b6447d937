"""A large and a small model on the same text, from scratch and taught by the other. Question 17.

Rates, the share of the teacher and the temperature were tried on seed 99 alone; both small models learn at the rate
that is best from scratch.
"""

from collections.abc import Mapping
from typing import Any

from llmlab.handbook.question import Text
from llmlab.handbook.trials import Trial

MEASURES = ("large", "small", "large to small", "small to large")


def run(settings: Mapping[str, Any], seed: int) -> dict[str, float]:
    from llmlab.handbook.distilling import run as live

    return live(settings, seed)


RACE = Trial(
    name="distillation",
    title=Text("distillation both ways: held-out nats a byte", "双向蒸馏：留出文本每字节奈特"),
    arms={"same text": {"steps": 400, "large_rate": 3e-3, "small_rate": 3e-3, "share": 1.0, "temperature": 1.0}},
    measures=MEASURES,
    run=run,
    listed=False,
    first=5,  # seeds 0 to 4 went 200 steps, and their interval held 0 too
)
