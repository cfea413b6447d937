"""Paired differences: against worked numbers and brute force, and what must hold of any race."""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.evaluation.measures import MEASURES
from llmlab.race.table import number, table, verdict
from llmlab.race.verdicts import pairs, summary

BITS = MEASURES["bits_per_byte"]
values = st.floats(-5, 5, allow_nan=False).map(lambda value: round(value, 3))
rows = st.integers(2, 6).flatmap(
    lambda seeds: st.lists(st.lists(values, min_size=seeds, max_size=seeds), min_size=2, max_size=5)
)


def test_a_worked_example() -> None:
    """Differences 0.1, 0.2, 0.3: mean 0.2, standard error 0.1 / sqrt 3, t of 2 degrees 4.302653."""
    (pair,) = pairs(BITS, {"a": [2.1, 2.3, 2.6], "b": [2.0, 2.1, 2.3]})
    half = 4.302652729911275 * 0.1 / math.sqrt(3)
    assert pair["difference"] == pytest.approx(0.2)
    assert pair["interval"] == pytest.approx([0.2 - half, 0.2 + half])
    assert pair["p"] == pytest.approx(0.0741799, abs=1e-6)  # 1 - t / sqrt(t^2 + 2) at t = 2 sqrt 3
    assert pair["verdict"] == "not told apart"


def test_pairing_sees_what_means_do_not() -> None:
    """Seeds differ by far more than arms; every seed says that b is better by about 0.1."""
    seeds = [1.0, 2.0, 3.0, 4.0]
    found = {"a": [s + d for s, d in zip(seeds, (0.10, 0.11, 0.09, 0.10), strict=True)], "b": seeds}
    (pair,) = pairs(BITS, found)
    assert pair["verdict"] == "worse"  # a needs more bits
    a, b = (summary(BITS, row)["interval"] for row in found.values())
    assert a[0] < b[1]  # the arms' own intervals overlap


@settings(deadline=None, max_examples=60)
@given(rows)
def test_what_holds_of_every_race(table_: list[list[float]]) -> None:
    named = {f"arm{n}": row for n, row in enumerate(table_)}
    found = pairs(BITS, named)
    assert len(found) == len(named) * (len(named) - 1) // 2
    turned = {(pair["b"], pair["a"]): pair for pair in pairs(BITS, dict(reversed(named.items())))}
    opposite = {"better": "worse", "worse": "better", "not told apart": "not told apart"}
    for pair in found:
        other = turned[pair["a"], pair["b"]]
        assert other["difference"] == pytest.approx(-pair["difference"])
        assert other["verdict"] == opposite[pair["verdict"]]
        assert other["p_holm"] == pytest.approx(pair["p_holm"])
        low, high = pair["interval"]
        assert (pair["verdict"] == "better") == (high < 0)
        assert (pair["verdict"] == "worse") == (low > 0)
        assert pair["p"] <= pair["p_holm"] <= 1
        if pair["survives"]:
            assert pair["verdict"] != "not told apart"
        if abs(pair["p"] - 0.05) > 1e-6:
            assert (pair["p"] < 0.05) == (pair["verdict"] != "not told apart")


@settings(deadline=None, max_examples=40)
@given(rows)
def test_holm_against_its_definition(table_: list[list[float]]) -> None:
    """Adjusted p of a hypothesis: the largest m - rank + 1 times p among those not larger, cut at one."""
    found = pairs(BITS, {f"arm{n}": row for n, row in enumerate(table_)})
    ordered = sorted(pair["p"] for pair in found)
    for pair in found:
        below = [min(1.0, (len(ordered) - rank) * p) for rank, p in enumerate(ordered) if p <= pair["p"]]
        assert pair["p_holm"] == pytest.approx(max(below))


def test_an_arm_without_a_value_fails_and_says_why() -> None:
    named: dict[str, list[float | str]] = {
        "rope": [2.0, 2.1],
        "learned": ["no row 128", "no row 128"],
        "nan": [1.0, "x"],
    }
    found = pairs(BITS, named)
    assert [pair["verdict"] for pair in found] == ["fails"] * 3
    assert [pair["fails"] for pair in found] == [["learned"], ["nan"], ["learned", "nan"]]
    assert all(pair["difference"] is None and pair["interval"] == [None, None] for pair in found)
    told = summary(BITS, named["nan"])
    assert (told["mean"], told["reason"], told["by_seed"]) == (None, "x", [1.0, None])
    assert [verdict(pair) for pair in found] == ["learned fails", "nan fails", "learned and nan fail"]


def test_without_spread_any_difference_is_told() -> None:
    same, fewer = [10.0, 10.0], [9.0, 9.0]
    (pair,) = pairs(MEASURES["parameters"], {"a": fewer, "b": same})
    assert (pair["verdict"], pair["p"], pair["interval"]) == ("better", 0.0, [-1.0, -1.0])
    (pair,) = pairs(MEASURES["parameters"], {"a": same, "b": same})
    assert (pair["verdict"], pair["p"], pair["survives"]) == ("not told apart", 1.0, False)


def test_a_verdict_does_not_depend_on_who_else_runs() -> None:
    named = {"a": [1.0, 1.1, 1.2], "b": [1.3, 1.5, 1.5], "c": [0.5, 2.5, 1.0]}
    alone = pairs(BITS, {name: named[name] for name in "ab"})[0]
    for order in permutations(named):
        found = next(p for p in pairs(BITS, {name: named[name] for name in order}) if {p["a"], p["b"]} == {"a", "b"})
        sign = 1 if found["a"] == "a" else -1
        assert found["difference"] == pytest.approx(sign * alone["difference"])


def test_numbers_are_written_as_long_as_they_tell() -> None:
    assert [number(v) for v in (2.41234, 75.1234, 1234.56, 935040.0, None)] == [
        "2.4123", "75.12", "1,234.6", "935,040", "-"
    ]  # fmt: skip
    assert number(0.5, "+") == "+0.5000"


def test_the_table_says_everything() -> None:
    named: dict[str, list[Any]] = {
        "rope": [2.0, 2.0, 2.01],
        "none": [3.0, 3.01, 3.0],
        "learned": ["past the table"] * 3,
    }
    arms = [{"name": n, "measures": [summary(BITS, row)], "changed": []} for n, row in named.items()]
    arms[1]["changed"] = [{"path": "model.feedforward.width", "from": None, "to": 99}]
    settings_ = {"measures": ["bits_per_byte"], "seeds": [0, 1, 2], "equal": "parameters"}
    text = table({"arms": arms, "pairs": pairs(BITS, named), "settings": settings_, "figure": "race.svg"})
    for said in (
        "bits_per_byte (bits per byte, lower is better)", "past the table", "learned fails", "better *",
        "3 arms, 3 seeds, equal parameters", "Comparisons: 1", "none: model.feedforward.width default -> 99",
    ):  # fmt: skip
        assert said in text
