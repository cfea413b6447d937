"""Questions 41 to 43 and 49 to 54: what they make of the races of norms and feed-forwards, whichever way these end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.handbook import costs
from llmlab.handbook import q43_rmsnorm_or_layernorm as q43
from llmlab.handbook import q52_glu as q52
from llmlab.handbook.question import Figures, Verdict, load
from llmlab.handbook.raced import Told, race
from llmlab.handbook.runner import recorded as record_of
from llmlab.handbook.runner import shipped

NORMS, FEEDFORWARDS = (41, 42, 43), (49, 50, 51, 52, 53, 54)
RACE = dict.fromkeys(NORMS, "norms") | dict.fromkeys(FEEDFORWARDS, "feedforward")
SEEDS = 5
EXPECTED = {
    "norms": {"layernorm": 2.2, "rmsnorm": 2.2, "partial": 2.21, "no gain": 2.205, "whole input": 2.205, "batch": 2.5},
    "feedforward": {
        **dict.fromkeys(("relu", "gelu", "gelu_tanh", "swish", "swish, learnt", "gelu without cube"), 2.30),
        **{"glu": 2.26, "bilinear": 2.25, "reglu": 2.25, "geglu": 2.24, "swiglu": 2.24},
        **{"relu, width 1": 2.40, "relu, width 2": 2.35, "relu, width 8": 2.25, "none": 2.50},
        **{"one matrix glu": 2.45, "one matrix geglu": 2.45},
    },
}
PARAMETERS = {
    "none": 394368.0,
    "relu, width 1": 525440.0,
    "relu, width 8": 1442944.0,
    **dict.fromkeys(("glu", "bilinear", "reglu", "geglu", "swiglu"), 935040.0),
    **dict.fromkeys(("one matrix glu", "one matrix geglu"), 459904.0),
}
PASSES = {  # what every raced claim is called when the race ends as expected, and when it ends the other way
    (41, "across samples, trained"): (Verdict.REFUTED, Verdict.NOT_REPRODUCED),
    (42, "trained without it"): (Verdict.CONFIRMED, Verdict.REFUTED),
    (43, "long sequences, trained"): (Verdict.REFUTED, Verdict.NOT_REPRODUCED),
    (43, "quality, trained"): (Verdict.CONFIRMED, Verdict.REFUTED),
    (43, "range, trained"): (Verdict.CONFIRMED, Verdict.REFUTED),
    (49, "worth, trained"): (Verdict.CONFIRMED, Verdict.REFUTED),
    (49, "width, trained"): (Verdict.CORRECTED, Verdict.NOT_REPRODUCED),
    (50, "trained"): (Verdict.CONFIRMED, Verdict.REFUTED),
    (51, "beta, trained"): (Verdict.CONFIRMED, Verdict.REFUTED),
    (51, "activation, trained"): (Verdict.CONFIRMED, Verdict.REFUTED),
    (52, "gain, trained"): (Verdict.CORRECTED, Verdict.NOT_REPRODUCED),
    (52, "printed, trained"): (Verdict.REFUTED, Verdict.NOT_REPRODUCED),
    (53, "printed, trained"): (Verdict.REFUTED, Verdict.NOT_REPRODUCED),
    (54, "printed, trained"): (Verdict.REFUTED, Verdict.NOT_REPRODUCED),
}
# Arms moved so that a claim does not come out; beside it, all of its question's other raced claims.
OTHERWISE: dict[tuple[int, str], dict[str, float]] = {
    (41, "across samples, trained"): {"batch": 2.2},
    (42, "trained without it"): {"no gain": 2.25},
    (43, "long sequences, trained"): {"rmsnorm@8x": 2.7},
    (43, "quality, trained"): {"rmsnorm": 2.24, "rmsnorm@8x": 2.44},
    (43, "range, trained"): {"whole input": 2.3},
    (49, "worth, trained"): {"none": 2.3},
    (49, "width, trained"): {"relu, width 1": 2.25},
    (50, "trained"): {"gelu without cube": 2.35},
    (51, "beta, trained"): {"swish, learnt": 2.34},
    (51, "activation, trained"): {"relu": 2.25},
    (52, "gain, trained"): dict.fromkeys(("glu", "bilinear", "reglu", "geglu", "swiglu"), 2.30),
    (52, "printed, trained"): {"one matrix glu": 2.26},
    (53, "printed, trained"): {"one matrix geglu": 2.24},
    (54, "printed, trained"): {"one matrix glu": 2.24},
}


def row(value: float, arm: int) -> list[float]:
    """Seeds move all arms together, and each a little on its own."""
    return [value + 0.01 * seed + 0.0005 * ((seed * 7 + arm * 3) % 5) for seed in range(SEEDS)]


def told(which: str, changed: Mapping[str, float] | None = None) -> dict[str, Told]:
    """A made-up record: arms by their losses, `arm@8x` that at eight times the length (0.2 more by default)."""
    base, changed = EXPECTED[which], changed or {}
    rows: dict[str, dict[str, Any]] = {measure: {} for measure in race(which).measures}
    for arm, name in enumerate(base):
        value = changed.get(name, base[name])
        rows["bits_per_byte"][name] = row(value, arm)
        rows["parameters"][name] = [PARAMETERS.get(name, 918656.0)] * SEEDS
        if "bits_per_byte@8x" in rows:
            rows["bits_per_byte@8x"][name] = row(changed.get(f"{name}@8x", value + 0.2), arm)
    record = {"name": which, "seeds": list(range(SEEDS)), "rows": rows, "arms": dict.fromkeys(base)}
    return {which: Told(record | {"seconds": 100.0, "date": "2026-11-24"})}


@cache
def alone(number: int) -> Figures:
    """The figures of the shipped record, those of a race aside."""
    question, record = load(number), shipped(number)
    assert record is not None
    assert question.raced is not None
    return {k: v for k, v in record["figures"].items() if k not in question.raced(told(RACE[number]))}


def figures_of(number: int, changed: Mapping[str, float] | None = None) -> Figures:
    question = load(number)
    assert question.raced is not None
    assert question.races == (RACE[number],)
    found = question.raced(told(RACE[number], changed))
    assert all(math.isfinite(value) for value in found.values())
    assert not found.keys() & alone(number).keys()
    return alone(number) | found


def judged(number: int, changed: Mapping[str, float] | None = None) -> dict[str, Verdict]:
    figures = figures_of(number, changed)
    return {claim.name: claim.judged(figures) for claim in load(number).claims if claim.race}


def test_the_made_up_races_have_the_arms_of_the_real_ones() -> None:
    for which, arms in EXPECTED.items():
        assert arms.keys() == race(which).arms.keys()


def test_every_raced_claim_is_tried_both_ways() -> None:
    raced = {(number, claim.name) for number in RACE for claim in load(number).claims if claim.race}
    assert raced == PASSES.keys() == OTHERWISE.keys()


@pytest.mark.parametrize("number", RACE)
def test_without_its_race_a_question_stands_as_before_and_with_it_the_race_is_told(number: int) -> None:
    question, figures = load(number), figures_of(number)
    assert [claim.race for claim in question.decided(alone(number))] == [None] * len(question.decided(alone(number)))
    assert question.decided(figures) == list(question.claims)
    assert question.verdict(figures) is question.verdict(alone(number))
    for spoken, before, word in zip(
        question.evidence(figures), question.evidence(alone(number)), ("Trained", "训练"), strict=True
    ):
        assert word in spoken[len(before) - 1 :]
        assert spoken.startswith(before[:-1])
    record = record_of(question, figures, 0, 1.0, told(RACE[number]))
    assert (record["tier"], record["races"][RACE[number]]["seeds"]) == ("M", SEEDS)


@pytest.mark.parametrize(("number", "name"), PASSES, ids=lambda value: str(value))
def test_both_outcomes_of_each_raced_claim(number: int, name: str) -> None:
    expected, otherwise = PASSES[number, name]
    assert judged(number)[name] is expected
    found = judged(number, OTHERWISE[number, name])
    assert found[name] is otherwise
    for other, verdict in found.items():
        assert other == name or verdict is PASSES[number, other][0], other


@pytest.mark.parametrize("number", RACE)
def test_a_race_whose_seeds_disagree_orders_nothing(number: int) -> None:
    """An ordering needs an interval that excludes zero; a harmlessness one that excludes the margin."""
    question, record = load(number), told(RACE[number])
    for turn, (measure, arms) in enumerate(record[RACE[number]].record["rows"].items()):
        if measure != "parameters":
            for place, name in enumerate(arms):
                arms[name] = [2.3 + 0.4 * math.sin(5.3 * seed + 1.7 * (place + turn) ** 2) for seed in range(SEEDS)]
    assert question.raced is not None
    figures = alone(number) | question.raced(record)
    for claim in question.claims:
        if claim.race:
            assert claim.judged(figures) is PASSES[number, claim.name][1], claim.name


def test_a_long_text_that_only_rmsnorm_cannot_read_changes_the_answer() -> None:
    question = load(43)
    assert question.verdict(figures_of(43, {"rmsnorm@8x": 2.4 + 2 * q43.NO_WORSE_FAR})) is Verdict.NOT_REPRODUCED
    assert question.verdict(figures_of(43, {"layernorm@8x": 2.9})) is Verdict.REFUTED


def test_what_a_gate_gains_is_not_its_extra_parameters() -> None:
    """Gated arms better by no more than their 3 % more parameters are worth: the gain shows, the net gain does not."""
    found = figures_of(52)
    assert found["gated_over_plain"] == pytest.approx(8.25 / 8, rel=1e-4)
    worth = math.log2(8.25 / 8) * 0.05  # the made-up doubling saves 0.05
    assert found["gating_gain"] - found["gating_net_gain"] == pytest.approx(worth, abs=2e-4)
    slight = figures_of(52, dict.fromkeys(q52.GATED, 2.30 - worth))
    assert slight["gating_gain"] == pytest.approx(worth, abs=1e-3)
    assert abs(slight["gating_net_gain"]) < 1e-3
    assert judged(52, dict.fromkeys(q52.GATED, 2.30 - worth))["gain, trained"] is Verdict.NOT_REPRODUCED


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.03, 0.05, costs.HARMFUL),
        (0.005, 0.03, costs.HARMFUL),
        (0.002, 0.008, costs.SLIGHT),
        (-0.004, 0.012, costs.HARMLESS),
        (-0.03, -0.01, costs.HELPFUL),
        (-0.01, 0.04, costs.UNDECIDED),
    ],
)
def test_wrong_and_harmless_is_told_from_wrong_and_harmful(low: float, high: float, said: object) -> None:
    assert costs.weighed({"c": (low + high) / 2, "c_lower": low, "c_upper": high}, "c") is said
    number = 50
    figures = alone(number) | dict.fromkeys(("tanh_cost", "tanh_cost_lower", "tanh_cost_upper"), 0.0)
    spoken = load(number).evidence(
        figures | {"printed_cost": (low + high) / 2, "printed_cost_lower": low, "printed_cost_upper": high}
    )
    assert said.en in spoken.en  # type: ignore[attr-defined]
    assert said.zh in spoken.zh  # type: ignore[attr-defined]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-3, 3), min_size=3, max_size=8), st.floats(-2, 2))
def test_the_interval_moves_with_its_seeds(by_seed: list[float], moved: float) -> None:
    here = costs.over_seeds("x", by_seed)
    there = costs.over_seeds("x", [value + moved for value in by_seed])
    assert here["x_lower"] <= here["x"] <= here["x_upper"]
    for name, value in here.items():
        assert there[name] == pytest.approx(value + moved, abs=1e-9)
