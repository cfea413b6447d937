"""What it costs to train with a wrong formula, or with another part: harmful, harmless, or not to be told.

By its 95 % interval over paired seeds. The margin was set before any of these arms was trained: about a tenth of what
separates ALiBi from a learnt table of positions in the same model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llmlab.evaluation import statistics
from llmlab.handbook.question import Figures, Text

MARGIN = 0.02  # bits per byte by which a loss may be higher and still count as no worse, upper 95 % bound

HARMFUL = Text("wrong and harmful", "写错且有害")
SLIGHT = Text("wrong and harmful, though by less than 0.02", "写错且有害，但不足 0.02")
HARMLESS = Text("wrong and harmless", "写错但无害")
HELPFUL = Text("wrong, yet better", "写错反而更好")
UNDECIDED = Text("wrong; harmful or not, these seeds do not tell", "写错；有害与否，这些种子判断不了")


def weighed(figures: Mapping[str, float], name: str) -> Text:
    """The verdict on a cost in bits per byte, given as `name`, `name_lower` and `name_upper`."""
    low, high = figures[f"{name}_lower"], figures[f"{name}_upper"]
    if low > 0:
        return HARMFUL if high >= MARGIN else SLIGHT
    if high < 0:
        return HELPFUL
    return HARMLESS if high < MARGIN else UNDECIDED


def spread(figures: Mapping[str, float], name: str) -> str:
    """`+0.031 [+0.020, +0.042]`."""
    return f"{figures[name]:+.3f} [{figures[f'{name}_lower']:+.3f}, {figures[f'{name}_upper']:+.3f}]"


def over_seeds(name: str, by_seed: Sequence[float]) -> Figures:
    """The mean of one figure a seed, with the ends of its 95 % interval."""
    found = statistics.mean(by_seed)
    low, high = found.interval
    assert low is not None
    assert high is not None
    return {name: found.value, f"{name}_lower": low, f"{name}_upper": high}
