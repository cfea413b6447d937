"""Ten facts in a document that SmolLM2 was trained to hold, and seven ways to read it. Question 11.

Needs the weights: `llmlab pull smollm2` and `llmlab pull minilm`."""

from collections.abc import Mapping
from typing import Any

from llmlab.handbook.question import Text
from llmlab.handbook.trials import Trial

TOKENS, SHORT = 6144, 512
MEASURES = ("recall", *(f"recall_{fifth}" for fifth in range(1, 6)), "tokens", "embedded", "tera", "passes", "held")


def read(settings: Mapping[str, Any], seed: int) -> dict[str, float | str]:
    from llmlab.handbook.needle_ways import run

    return run(settings, seed)


def arm(way: str, tokens: int, edges: bool = False) -> dict[str, Any]:
    """`edges`: facts lie on the edges of chunks."""
    return {"way": way, "tokens": tokens, "edges": edges}


RACE = Trial(
    name="needles",
    title=Text("facts in a document of 6,144 tokens, by the way it is read", "6,144 个词元的文档中的事实：各种读法"),
    arms={
        "short": arm("whole", SHORT),
        "short, asked": arm("asked", SHORT),
        **{
            way: arm(way, TOKENS)
            for way in ("truncated", "chunks", "overlapping", "summaries", "hierarchy", "retrieved", "whole")
        },
        "chunks, on edges": arm("chunks", TOKENS, edges=True),
        "overlapping, on edges": arm("overlapping", TOKENS, edges=True),
    },
    measures=MEASURES,
    run=read,
    listed=False,
)
