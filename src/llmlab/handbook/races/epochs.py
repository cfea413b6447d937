"""One budget of tokens: a text read once, and ever less text read ever more often; with dropout too; a few documents
met far oftener than the rest; and less of everything, read once, to say what the repeated tokens were worth. Question
30.

Rates, width and the share of dropout were tried on seed 100 alone.
"""

from collections.abc import Mapping
from typing import Any

from llmlab.handbook.question import Text
from llmlab.handbook.trials import Trial

BUDGET = 3072  # documents that are read, of 128 tokens each
EPOCHS = (1, 2, 4, 8, 16, 64)
DROPPED = (1, 4, 16, 64)  # epochs of which there is a twin with dropout
FEWER = (2, 4, 8)  # parts of the budget that are read once and then no more
FEW = 21  # documents, a hundredth of their corpus, that are met fifty times
OF_A_RUNG, RUNGS = 16, (64, 32, 16, 8, 4, 2)
NO = {"dropout": 0.0}
MEASURES = (
    *("bits per byte", "bits per byte, seen", "nats that context saves"),
    *("parameters", "flops a step", "different tokens", "tokens"),
    *("extracted", "copied", "extracted, held out"),
    *(f"bits@{point}" for point in range(1, 17)),
    *(f"{what} x{times}" for what in ("extracted", "copied") for times in (1, 2, 4, 8, 16, 32, 64)),
)


def run(settings: Mapping[str, Any], seed: int) -> Mapping[str, float | str]:
    from llmlab.handbook.epochs import run

    return run(settings, seed)


RACE = Trial(
    name="epochs",
    title=Text("one budget of tokens, less and less text", "词元预算相同，文本越来越少"),
    arms={
        **{f"{times} x": {"groups": [[BUDGET // times, times]], **NO} for times in EPOCHS},
        **{f"{times} x, dropout": {"groups": [[BUDGET // times, times]], "dropout": 0.1} for times in DROPPED},
        **{f"once, 1/{part}": {"groups": [[BUDGET // part, 1]], **NO} for part in FEWER},
        "1 % x 50": {"groups": [[FEW, 50], [BUDGET - 50 * FEW, 1]], **NO},
        "every count": {
            "groups": [*([OF_A_RUNG, times] for times in RUNGS), [BUDGET - OF_A_RUNG * sum(RUNGS), 1]],
            **NO,
        },
    },
    common={"layers": 2, "dim": 64, "rows": 12, "rate": 2e-2, "adamw_rate": 1e-2},
    measures=MEASURES,
    run=run,
    listed=False,
)
