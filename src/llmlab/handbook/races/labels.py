"""A small labelled task, learnt from few labels with pretraining and without. Question 4.

Rates, steps and how much a passage is spoilt were tried on seed 100 alone.
"""

from collections.abc import Mapping
from typing import Any

from llmlab.handbook.question import Text
from llmlab.handbook.trials import Trial


def run(settings: Mapping[str, Any], seed: int) -> Mapping[str, float]:
    from llmlab.handbook.misspelling_task import run

    return run(settings, seed)


PRETRAINING = {"steps": 500, "rows": 16, "rate": 2e-2, "adamw_rate": 1e-2}
TUNING = {"tune_steps": 100, "tune_rows": 16, "tune_rate": 1e-2, "tune_adamw_rate": 5e-3}

RACE = Trial(
    name="labels",
    title=Text("few labels, with pretraining and without", "少量标注：有无预训练"),
    arms={"pretrained": {"pretrained": True}, "scratch": {"pretrained": False}},
    common={**PRETRAINING, **TUNING},
    run=run,
    measures=tuple(f"accuracy, {labels} labels" for labels in (50, 200, 1000)),
)
