"""Tokens a second of SmolLM2 on one thread of this CPU, beside what its roofline allows. Question 13.

A seed is a round: the kinds of weights take turns, so that a slow minute is nobody's alone. The weights must have been
pulled (`llmlab pull smollm2`)."""

from collections.abc import Mapping
from typing import Any

from llmlab.handbook.question import Text
from llmlab.handbook.trials import Trial


def run(settings: Mapping[str, Any], seed: int) -> dict[str, float | str]:
    from llmlab.handbook.speeds import run as timed

    return timed(settings, seed)


BATCHES = (1, 4, 16)
RACE = Trial(
    name="speed",
    title=Text("SmolLM2 on one thread of this CPU: tokens a second", "SmolLM2 在本机 CPU 单线程上：每秒词元数"),
    common={"prompt": 128, "new": 24, "turns": 2},
    arms={kind: {"weights": kind} for kind in ("fp32", "bf16", "int8", "int4")},
    measures=(
        *(f"decode tokens/s@{rows}" for rows in BATCHES),
        *(f"decode over roofline@{rows}" for rows in BATCHES),
        *(f"prefill tokens/s@{rows}" for rows in BATCHES),
        *(f"prefill over roofline@{rows}" for rows in BATCHES),
        *("gigabytes/s", "gigaflops/s", "native"),
    ),
    run=run,
    listed=False,
)
