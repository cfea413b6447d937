"""What attention and an LSTM of equal size recall, by the number of pairs and by distance. Question 4.

Rate and steps were tried on seed 100 alone.
"""

from collections.abc import Mapping
from typing import Any

from llmlab.handbook.question import Text
from llmlab.handbook.trials import Trial


def run(settings: Mapping[str, Any], seed: int) -> Mapping[str, float]:
    from llmlab.handbook.stored_pairs_task import run

    return run(settings, seed)


PAIRS, DISTANCES = (2, 4, 8, 16, 32, 64), (16, 64, 256)

RACE = Trial(
    name="stored_pairs",
    title=Text("recall of stored pairs, two layers of width 64", "记忆键值对：两层，宽 64"),
    arms={
        "attention": {"mixer": {"kind": "mha", "heads": 2}},
        "lstm": {"mixer": {"kind": "lstm"}},
    },
    common={"steps": 800, "easy": 400, "rows": 16, "rate": 2e-2, "adamw_rate": 1e-2},
    run=run,
    measures=(
        *(f"accuracy, {pairs} pairs, distance {DISTANCES[0]}" for pairs in PAIRS),
        *(f"accuracy, 4 pairs, distance {distance}" for distance in DISTANCES[1:]),
        "parameters",
    ),
)
