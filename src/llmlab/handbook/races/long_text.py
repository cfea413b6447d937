"""A pulled model read to half again its length, one text. Question 8. Needs the weights: `llmlab pull smollm2`.

One seed: a text read whole takes minutes, and what is claimed is a leap on one model, the same tokens compared."""

from collections.abc import Mapping
from typing import Any

from llmlab.handbook.question import Text
from llmlab.handbook.trials import Trial


def _run(settings: Mapping[str, Any], seed: int) -> dict[str, float | str]:
    from llmlab.handbook.long_text import run

    return run(settings, seed)


RACE = Trial(
    name="long_text",
    title=Text("SmolLM2, trained for 8192 tokens, reads 12288", "SmolLM2（训练长度 8192）读 12288 个词元"),
    arms={
        "whole": {"start": 0, "way": None},
        "begun later": {"start": 4096, "way": None},
        "whole, yarn": {"start": 0, "way": "yarn"},
        "whole, linear": {"start": 0, "way": "linear"},
        "whole, ntk": {"start": 0, "way": "ntk"},
    },
    measures=tuple(f"nats_{place}k" for place in range(1, 13)),
    run=_run,
    seeds=1,
)
