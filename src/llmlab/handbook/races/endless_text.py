"""SmolLM2 reads 100,000 tokens of one book through 512 places. Needs the weights: `llmlab pull smollm2`.

One seed: nothing is trained, and what is claimed is of one model and the same tokens, with intervals over them.
"""

from collections.abc import Mapping
from typing import Any

from llmlab.handbook.question import Text
from llmlab.handbook.races.streams import MEASURES
from llmlab.handbook.trials import Trial


def _run(settings: Mapping[str, Any], seed: int) -> dict[str, float | str]:
    from llmlab.handbook.streams import real

    return real(settings, seed)


RACE = Trial(
    name="endless_text",
    title=Text("SmolLM2 streams 100,000 tokens through 512 places", "SmolLM2 用 512 个位置的窗口连续读 10 万个词元"),
    arms={
        "window and sinks": {"window": 508, "sinks": 4, "tokens": 100_000, "sampled": 128},
        "window alone": {"window": 512, "sinks": 0, "tokens": 16_000, "sampled": 32},
        "dense": {"window": None, "sinks": 0, "tokens": 16_000, "sampled": 32},
    },
    common={"model": "smollm2", "exact": 512},
    measures=MEASURES,
    run=_run,
    seeds=1,
    listed=False,
)
