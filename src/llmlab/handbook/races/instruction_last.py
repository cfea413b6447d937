"""Content first, what is asked of it last: read from left to right or both ways, by depth. Question 2.

Rate, steps and the number of arrows were tried on seed 100 alone.
"""

from collections.abc import Mapping
from typing import Any

from llmlab.handbook.question import Text
from llmlab.handbook.trials import Trial


def run(settings: Mapping[str, Any], seed: int) -> Mapping[str, float]:
    from llmlab.handbook.instruction_task import run

    return run(settings, seed)


RACE = Trial(
    name="instruction_last",
    title=Text("the instruction after the content, width 64", "内容在前、指令在后：宽 64"),
    arms={
        f"{mask}, {layers}": {"mask": mask, "layers": layers} for layers in (1, 2, 4) for mask in ("causal", "prefix")
    },
    common={"steps": 800, "rows": 64, "rate": 2e-2, "adamw_rate": 1e-2},
    run=run,
    measures=tuple(f"accuracy, {hops} arrows" for hops in (1, 2, 3)),
)
