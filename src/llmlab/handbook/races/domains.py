"""What a domain's text is worth to a model of its own, and to a general one: by how much of it there is. Question 10.

Rates, steps and the adapter's rank were tried on seed 100 alone.
"""

from collections.abc import Mapping
from typing import Any

from llmlab.handbook.question import Text
from llmlab.handbook.trials import Trial

NAMES = ("dialogues", "classical Chinese")
SHARES = (1, 10, 100)  # per cent of what there is of a domain
STEPS = 100  # of every way of training
RATES = {"rate": 2e-2, "adamw_rate": 1e-2}
LEARNING = {
    "scratch": {"replay": 0.0},
    "continued": {"replay": 0.0},
    "replay": {"replay": 0.15},
    "lora": {"replay": 0.0, "rank": 8},
}
MEASURES = ("domain bits", "terms", "general bits", "general bits, set aside", "own parameters", "kept at")


def run(settings: Mapping[str, Any], seed: int) -> Mapping[str, float]:
    from llmlab.handbook.domain_model import run

    return run(settings, seed)


def _arms() -> dict[str, dict[str, Any]]:
    arms: dict[str, dict[str, Any]] = {}
    for name in NAMES:
        arms[f"{name}, general"] = {"domain": name, "share": 1.0, "way": "general"}
        for share in SHARES:
            told = {"domain": name, "share": share / 100}
            for way in ("passages", "neighbours"):
                arms[f"{name}, {share} %, {way}"] = told | {"way": way}
            for way, how in LEARNING.items():
                arms[f"{name}, {share} %, {way}"] = told | {"way": way, "steps": STEPS, **RATES} | how
    return arms


RACE = Trial(
    name="domains",
    title=Text("a domain's text, by how much of it there is", "领域文本：按数据多少"),
    arms=_arms(),
    common={"rows": 4, "general_steps": 300, "general_rows": 4, "general_rate": 2e-2, "general_adamw_rate": 1e-2},
    measures=MEASURES,
    run=run,
    listed=False,
)
