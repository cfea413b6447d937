"""Ten facts in documents of 6,144 and 12,288 tokens, read by SmolLM2 (trained for 8,192) in eight ways. Question 11.

Needs the weights: `llmlab pull smollm2` and `llmlab pull minilm`."""

from collections.abc import Mapping
from typing import Any

from llmlab.handbook.question import Text
from llmlab.handbook.trials import Trial

WITHIN, PAST, SHORT = 6144, 12288, 512


def _run(settings: Mapping[str, Any], seed: int) -> dict[str, float | str]:
    from llmlab.handbook.needle_ways import run

    return run(settings, seed)


def _arm(way: str, tokens: int, edges: bool = False) -> dict[str, Any]:
    return {"way": way, "tokens": tokens, "edges": edges}


RACE = Trial(
    name="needles",
    title=Text("facts in long documents, by the way they are read", "长文档中的事实：各种读法"),
    arms={
        "short": _arm("whole", SHORT),
        **{
            way: _arm(way, WITHIN)
            for way in ("truncated", "chunks", "overlapping", "summaries", "hierarchy", "retrieved", "whole")
        },
        "chunks, on edges": _arm("chunks", WITHIN, edges=True),
        "overlapping, on edges": _arm("overlapping", WITHIN, edges=True),
        **{
            f"{way}, 12k": _arm(way, PAST)
            for way in ("truncated", "overlapping", "hierarchy", "retrieved", "streamed", "stretched", "whole")
        },
    },
    measures=(
        "recall",
        *(f"recall_{fifth}" for fifth in range(1, 6)),
        "tokens",
        "embedded",
        "tera",
        "passes",
        "held",
    ),
    run=_run,
    listed=False,
)
