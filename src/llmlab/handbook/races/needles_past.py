"""Ten facts in a document half again as long as SmolLM2 was trained for, and seven ways to read it. Question 11.

Needs the weights: `llmlab pull smollm2` and `llmlab pull minilm`."""

from llmlab.handbook.question import Text
from llmlab.handbook.races.needles import MEASURES, arm, read
from llmlab.handbook.trials import Trial

TOKENS = 12_288

RACE = Trial(
    name="needles_past",
    title=Text("facts in a document of 12,288 tokens, by the way it is read", "12,288 个词元的文档中的事实：各种读法"),
    arms={
        way: arm(way, TOKENS)
        for way in ("truncated", "overlapping", "hierarchy", "retrieved", "streamed", "stretched", "whole")
    },
    measures=MEASURES,
    run=read,
    listed=False,
)
