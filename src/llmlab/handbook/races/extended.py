"""A little model trained at 32 tokens, read at up to 256, before and after a short tuning at 128. Questions 36, 37."""

from collections.abc import Mapping
from typing import Any

from llmlab.handbook.question import Text
from llmlab.handbook.trials import Trial

TUNED = 50  # steps at four times the length, as against 300 at the length


def _run(settings: Mapping[str, Any], seed: int) -> dict[str, float | str]:
    from llmlab.handbook.extended import run

    return run(settings, seed)


def _arm(way: str | None, tuning_steps: int = TUNED, position: str = "rope") -> dict[str, Any]:
    return {"position": position, "way": way, "tuning_steps": tuning_steps}


RACE = Trial(
    name="extended",
    title=Text(
        "trained at 32 tokens, tuned at 128, read at up to 256", "以 32 个词元训练，在 128 处微调，最长读到 256"
    ),
    arms={
        "rope": _arm(None),
        "linear": _arm("linear"),
        "ntk": _arm("ntk"),
        "yarn": _arm("yarn"),
        "sinks": _arm("sinks", 0),
        "alibi": _arm(None, 0, "alibi"),
    },
    common={
        "steps": 300,
        "rows": 32,
        "rate": 0.02,
        "adamw_rate": 0.005,
        "tuning_rows": 8,
        "tuning_rate": 0.01,
        "tuning_adamw_rate": 0.0025,
    },
    measures=tuple(
        f"{what}@{times}x"
        for what in ("bits", "needle", "beside", "entropy", "tuned bits", "tuned needle")
        for times in (1, 2, 4, 8)
    ),
    run=_run,
)
