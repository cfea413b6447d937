"""Attention without feed-forward networks, one layer of it and two. Question 6.

Three of four rows are random tokens said over and over, where copying is all that helps; the others are the book. On
the book alone neither copies in this time (seed 100, which does not race: 600 steps, half of its tokens said again).
"""

from llmlab.handbook.question import Text
from llmlab.handbook.races.repeated_data import FITTED, MEASURES, PLAIN, run
from llmlab.handbook.trials import Trial

ALONE = PLAIN | {"feedforward": "llmlab.handbook.literal.absent:Absent", "drilled": 0.75}
RACE = Trial(
    name="attention_alone",
    title=Text("attention alone, by layers", "纯注意力模型，按层数"),
    arms={"one layer": ALONE | {"layers": 1}, "two layers": ALONE | {"layers": 2}},
    common={**FITTED, "dim": 64, "rows": 12, "steps": 1000},
    measures=MEASURES,
    run=run,
    listed=False,
)
