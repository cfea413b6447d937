"""Likelihood against objectives that hold repetition down, on plain text. Question 6.

DITTO turns half of the rows into copies, which teach no text: `half the rows` has as little text without it. Sizes are
those of `repeated_data`; the objectives are as their papers set them.
"""

from collections.abc import Mapping
from typing import Any

from llmlab.handbook.question import Text
from llmlab.handbook.races.repeated_data import FITTED, PLAIN
from llmlab.handbook.races.repeated_data import MEASURES as WRITTEN
from llmlab.handbook.trials import Trial

MEASURES = (*WRITTEN, "nats a token")


def run(settings: Mapping[str, Any], seed: int) -> dict[str, float]:
    from llmlab.handbook.repeating_model import run

    return run(settings, seed)


RACE = Trial(
    name="against_repetition",
    title=Text("objectives against repetition", "抑制复读的训练目标"),
    arms={
        "likelihood": PLAIN | {"rows": 12},
        "unlikelihood": PLAIN | {"rows": 12, "against": {"kind": "unlikelihood"}},
        "label smoothing": PLAIN | {"rows": 12, "against": {"kind": "label_smoothing"}},
        "ditto": PLAIN | {"rows": 12, "against": {"kind": "ditto"}},
        "half the rows": PLAIN | {"rows": 6},
    },
    common={**FITTED, "dim": 96, "steps": 250},
    measures=MEASURES,
    run=run,
    listed=False,
)
