"""Adding by size, and by data, steps, mixer and pre-training at one size. Questions 3 and 15.

Steps, rate, sizes and numbers of sums were chosen on seed 100, which does not race: with 200 steps the smallest
model's answers of 8 digits are all wrong and most of the largest's right.
"""

from collections.abc import Mapping
from typing import Any

from llmlab.handbook.question import Text
from llmlab.handbook.trials import Trial

SIZES = (16, 24, 40, 64, 104, 200)  # widths: 6 thousand to a million parameters
MIDDLE = 64
LADDER = tuple(f"width {dim}" for dim in SIZES)


def _run(settings: Mapping[str, Any], seed: int) -> dict[str, float]:
    from llmlab.handbook.addition import run

    return run(settings, seed)


RACE = Trial(
    name="addition",
    title=Text("adding numbers of 2, 4 and 8 digits", "2 位、4 位、8 位加法"),
    arms={
        **{name: {"dim": dim} for name, dim in zip(LADDER, SIZES, strict=True)},
        "800 sums": {"dim": MIDDLE, "few": 800},
        "3200 sums": {"dim": MIDDLE, "few": 3200},
        "50 steps": {"dim": MIDDLE, "steps": 50},
        "50 steps, pre-trained": {"dim": MIDDLE, "steps": 50, "before": 200},
        "gru": {"dim": 55, "mixer": "gru"},
        "lstm": {"dim": 54, "mixer": "lstm"},
        "gru, small": {"dim": 16, "mixer": "gru"},
    },
    common={"steps": 200},
    measures=(
        *(f"{name}_{length}" for name in ("exact", "digit", "product") for length in (2, 4, 8)),
        *(f"digit_at_{place}" for place in range(1, 9)),
        *("nll", "brier", "edits", "parameters"),
    ),
    run=_run,
)
