"""Which arm is better: paired differences over seeds, with Student's t.

Arms of one seed share initial weights (where names and shapes agree), data order and text, so differences are taken
seed by seed and their spread is the interval's only source: it says how far other seeds would move the difference, not
other texts. With the three to ten seeds one has, a sign test cannot reach 5 % below six pairs and a bootstrap of three
to five values has no tail to take a percentile of; Student's t (1908) is exact for normal differences.

Several comparisons: every interval is a 95 % interval of that one comparison, and the verdict is read off that
interval, so that the two never contradict each other and a verdict does not change because an arm joined the race. What
this costs is said: among m pairs that are all equal, 0.05 m verdicts are expected by chance. For claims about the whole
table each pair also has `p_holm`, its p-value after Holm's step-down correction (Holm 1979) over all pairs of its
measure, and `survives`: whether that is below 5 %. Intervals that go with Holm's procedure exist, but for the pairs
that it tells apart they only say "not zero" (Strassburger & Bretz 2008), which hides the size of the difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from llmlab.evaluation import statistics
from llmlab.evaluation.measures import Measure
from llmlab.evaluation.statistics import Estimate, t_cdf

CONFIDENCE = 0.95

Row = Sequence[float | str]  # one value a seed, or the reason why there is none


def summary(measure: Measure, row: Row) -> dict[str, Any]:
    """Mean over seeds with its interval; null with the reason where a seed has no value."""
    numbers = _numbers(row)
    head: dict[str, Any] = {"measure": measure.name, "unit": measure.unit, "better": measure.better}
    if numbers is None:
        reason = next(value for value in row if isinstance(value, str))
        by_seed = [None if isinstance(value, str) else value for value in row]
        return head | {"mean": None, "interval": [None, None], "by_seed": by_seed, "reason": reason}
    found = statistics.mean(numbers, CONFIDENCE)
    return head | {"mean": found.value, "interval": found.interval, "by_seed": numbers}


def pairs(measure: Measure, rows: Mapping[str, Row]) -> list[dict[str, Any]]:
    """Each two arms: `difference` is a minus b, the verdict is on a (`a` is better than `b`).

    Where an arm has no value the verdict is `fails`, and `fails` names who.
    """
    found = [_pair(measure, a, b, rows[a], rows[b]) for a, b in combinations(rows, 2)]
    _holm([pair for pair in found if "p" in pair])
    return found


def _pair(measure: Measure, a: str, b: str, first: Row, second: Row) -> dict[str, Any]:
    head: dict[str, Any] = {"a": a, "b": b, "measure": measure.name}
    mine, other = _numbers(first), _numbers(second)
    if mine is None or other is None:
        who = [name for name, numbers in ((a, mine), (b, other)) if numbers is None]
        return head | {"difference": None, "interval": [None, None], "verdict": "fails", "fails": who}
    differences = np.subtract(mine, other)
    found = statistics.mean(differences, CONFIDENCE)
    told = statistics.verdict(found, measure.better)
    p = _p(found, differences)
    return head | {"difference": found.value, "interval": found.interval, "verdict": told, "p": p}


def _p(found: Estimate, differences: np.ndarray[Any, Any]) -> float:
    """Two-sided p-value of no difference. Without any spread (as of parameters) it is 0 or 1."""
    error = float(differences.std(ddof=1)) / math.sqrt(found.n)
    if error == 0:
        return float(found.value == 0)
    return max(0.0, 2 * (1 - t_cdf(abs(found.value) / error, found.n - 1)))


def _holm(tested: Sequence[dict[str, Any]]) -> None:
    """Adjusted p-values of one measure, smallest first; none is smaller than the one before it."""
    largest = 0.0
    for rank, pair in enumerate(sorted(tested, key=lambda pair: float(pair["p"]))):
        largest = max(largest, min(1.0, (len(tested) - rank) * pair["p"]))
        pair["p_holm"] = largest
        pair["survives"] = largest < 1 - CONFIDENCE


def _numbers(row: Row) -> list[float] | None:
    numbers = [value for value in row if not isinstance(value, str)]
    return numbers if len(numbers) == len(row) else None
