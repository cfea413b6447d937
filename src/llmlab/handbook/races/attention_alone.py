"""Attention without feed-forward networks, one layer of it and two, on text whose runs are said again. Question 6.

Width, steps and share were chosen on seed 100, which does not race: with less of it neither copies in this time.
"""

from llmlab.handbook.question import Text
from llmlab.handbook.races.repeated_data import FITTED, MEASURES, PLAIN, run
from llmlab.handbook.trials import Trial

ALONE = PLAIN | {"feedforward": "llmlab.handbook.literal.absent:Absent", "within": 1.0}
RACE = Trial(
    name="attention_alone",
    title=Text("attention alone, by layers", "纯注意力模型，按层数"),
    arms={"one layer": ALONE | {"layers": 1}, "two layers": ALONE | {"layers": 2}},
    common={**FITTED, "dim": 64, "rows": 16, "steps": 1000},
    measures=MEASURES,
    run=run,
    listed=False,
)
