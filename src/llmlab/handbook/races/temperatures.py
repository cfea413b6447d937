"""Sums and stories by temperature, and by top-k and top-p at T = 1. Question 16.

Steps and rates are those of the races of addition and of parts.
"""

from collections.abc import Mapping
from typing import Any

from llmlab.handbook.question import Text
from llmlab.handbook.trials import Trial

TEMPERATURES = (0.0, 0.25, 0.5, 0.8, 1.0, 1.5, 2.0)
SETTINGS: dict[str, dict[str, float]] = {
    **{f"T = {t:g}": {"temperature": t} for t in TEMPERATURES},
    "top-k = 20": {"top_k": 20},
    "top-p = 0.9": {"top_p": 0.9},
}
MARKS = ("words", "distinct", "divergence")


def run(settings: Mapping[str, Any], seed: int) -> dict[str, float | str]:
    from llmlab.handbook import temperatures

    found = (temperatures.sums if settings["task"] == "sums" else temperatures.stories)(settings, seed)
    return {measure: found.get(measure, "not asked of this task") for measure in MEASURES}


MEASURES = (
    *(f"exact {name}" for name in SETTINGS),
    *(f"{mark} {name}" for mark in MARKS for name in (*SETTINGS, "human")),
)
RACE = Trial(
    name="temperatures",
    title=Text("sums and stories by temperature", "算术与故事：温度的影响"),
    arms={
        "sums": {"task": "sums", "dim": 64, "steps": 200},
        "stories": {"task": "stories", "steps": 500, "text_rows": 16, "rate": 2e-2, "adamw_rate": 1e-2},
    },
    common={"settings": SETTINGS},
    run=run,
    listed=False,
    measures=MEASURES,
)
