"""What a little model's text owes to repetition in its data: runs said again within a passage, to a dose; as many
tokens of passages met again and again; and less text, read oftener. Question 6.

Rates were chosen on seed 100, which does not race, on wider models; these are as small as a race of minutes allows.
"""

from collections.abc import Mapping
from typing import Any

from llmlab.handbook.question import Text
from llmlab.handbook.trials import Trial

PLAIN = {"layers": 2, "feedforward": "swiglu", "within": 0.0, "across": 0.0, "unique": 1.0, "against": {"kind": "none"}}
FITTED = {"rate": 0.02, "adamw_rate": 0.01}
WRITING = ("greedy", "sampled", "book")
MEASURES = (
    *(f"{mark}, {how}" for how in WRITING for mark in ("rep-4", "loops", "distinct-2")),
    *("bits per byte", "rep-4, data"),
    *("nats, random", "nats, random again", "nats, random shuffled", "right, random again"),
    *("extracted, met again", "extracted, met once"),
)


def run(settings: Mapping[str, Any], seed: int) -> dict[str, float]:
    from llmlab.handbook.repeating_model import run

    found = run(settings, seed)
    return {measure: found[measure] for measure in MEASURES}


RACE = Trial(
    name="repeated_data",
    title=Text("repetition in the data", "数据中的重复"),
    arms={
        "none": PLAIN,
        **{f"within {percent} %": PLAIN | {"within": percent / 100} for percent in (5, 15, 30)},
        "across 30 %": PLAIN | {"across": 0.3},
        "a 32nd": PLAIN | {"unique": 1 / 32},
    },
    common={**FITTED, "dim": 96, "rows": 12, "steps": 250},
    measures=MEASURES,
    run=run,
    listed=False,
)
