"""SmolLM2 and layers of its shape in several precisions, timed in turn on one thread. Question 14.

A seed is a repetition with other prompts. The figures are of the machine that the record names: run it on an idle one.
SmolLM2 must have been pulled (`llmlab pull smollm2`).
"""

from collections.abc import Mapping
from typing import Any

from llmlab.handbook.question import Text
from llmlab.handbook.trials import Trial

METHODS = ("fp32", "bf16", "fp16", "W8A16", "W8A8", "LLM.int8()", "W4A16")


def run(settings: Mapping[str, Any], seed: int) -> dict[str, float | str]:
    from llmlab.handbook.precisions import speed

    return speed(settings, seed)


RACE = Trial(
    name="precision_speed",
    title=Text("precisions: reading and decoding", "各种精度：预填充与解码"),
    arms={"1 text": {"rows": 1, "prompt": 256}, "8 texts": {"rows": 8, "prompt": 64}},
    common={"new": 12, "rounds": 3},
    run=run,
    listed=False,
    measures=(
        *(f"{part}{phase} {m}" for part in ("layer ", "") for phase in ("prefill", "decode") for m in METHODS),
        *(f"{phase} native {kind}" for phase in ("prefill", "decode") for kind in ("int4", "int8", "bf16")),
        *(f"megabytes {m}" for m in METHODS),
        *("outlier columns", "bandwidth"),
    ),
)
