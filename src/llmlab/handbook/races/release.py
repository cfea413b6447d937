"""Resident memory before and after a model is deleted, and after the heap is trimmed. Question 12.

The model has SmolLM2's shape and weights made here; each life is a process of its own, and texts differ by seed."""

from collections.abc import Mapping
from typing import Any

from llmlab.handbook.question import Text
from llmlab.handbook.trials import Trial


def run(settings: Mapping[str, Any], seed: int) -> dict[str, float | str]:
    from llmlab.handbook.release import run as live

    return live(settings, seed)


RACE = Trial(
    name="release",
    title=Text("resident memory, megabytes: held and given back", "常驻内存（MB）：占用与归还"),
    common={"layers": 30, "texts": 4, "new": 8},
    arms={"128 tokens": {"length": 128}, "1024 tokens": {"length": 1024}},
    measures=("loaded", "peak", "answered", "deleted", "trimmed"),
    run=run,
    listed=False,
    first=20,  # lives 0 to 19 were seen before the number of lives was settled
    seeds=20,  # a heap holds hundreds of megabytes or none, as its holes happen to lie: five lives told nothing
    version=2,  # 1 counted what the libraries took when they were first used
)
