"""Questions 36 to 40: numbers of the specification, and what their races would have to say."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from llmlab.evaluation.extrapolation import MULTIPLES
from llmlab.handbook import lengths
from llmlab.handbook.one_layer import penalties
from llmlab.handbook.question import Verdict, load
from llmlab.handbook.raced import Told, race
from llmlab.model.rotary import NTK, DynamicNTK, Linear, NoScaling, YaRN
from llmlab.stages import Session

SEEDS = range(5)


def told(name: str, value: Any) -> Told:
    """A made-up record: `value(arm, measure)` for every arm and measure of a race, with a little noise over seeds."""
    which = race(name)

    def row(arm: str, measure: str) -> list[Any]:
        mean = value(arm, measure)
        return [mean if isinstance(mean, str) else mean + 1e-3 * math.sin(seed + len(arm)) for seed in SEEDS]

    rows = {measure: {arm: row(arm, measure) for arm in which.arms} for measure in which.measures}
    return Told({"name": name, "seeds": list(SEEDS), "arms": {arm: {} for arm in which.arms}, "rows": rows})


RISE = {"alibi": -0.05, "sinusoidal": 2.0, "rope": 1.5, "rope, wide": 1.4, "none": 1.0, "t5": 0.5, "low dimension": 1.0}
WAY = {"linear": 0.9, "ntk": 0.5, "dynamic": 0.4, "yarn": 0.3, "logn": 1.4, "window": 0.2, "sinks": 0.1}


def as_expected(arm: str, measure: str) -> Any:
    """What the papers would have the race of positions find."""
    if measure == "parameters":
        return {"learned": 816_384.0, "rope, wide": 3_200_000.0}.get(arm, 800_000.0)
    way, _, times = measure.partition("@")
    if not times:
        return 2.2
    grown = math.log2(float(times[:-1])) / 3
    if arm == "learned" and grown:
        return "position 128 lies past the learnt table of 128"
    if way in WAY:
        return 2.2 + WAY[way] * grown if arm.startswith("rope") else "has no angles to rescale"
    worse = {"multiplied weights": 0.4, "multiplied scores": 0.4, "low dimension": 0.1}.get(arm, 0.0)
    return 2.2 + worse + RISE.get(arm, 1.0) * grown


def short_as_expected(arm: str, measure: str) -> Any:
    values = {"bits_per_byte@context": {"sinusoidal, 64": 2.6, "sinusoidal, 128": 2.2, "alibi, 64": 2.18}}
    values |= {"seconds": {"alibi, 64": 50.0}, "peak_bytes": {"alibi, 64": 6e8}}
    return values.get(measure, {}).get(arm, {"seconds": 55.0, "peak_bytes": 7e8, "parameters": 8e5}.get(measure, 2.2))


GROWN = {"rope": 1.5, "linear": 1.0, "ntk": 0.6, "yarn": 0.3, "sinks": 0.02, "alibi": -0.05}
LOST = {"linear": 0.3}


def extended_as_expected(arm: str, measure: str) -> Any:
    """What the papers would have the race of extended models find."""
    what, _, times = measure.partition("@")
    grown = math.log2(float(times[:-1])) / 3
    return {
        "bits": 3.0 + GROWN[arm] * grown,
        "needle": 0.6 - LOST.get(arm, 0.5) * grown,
        "beside": 3.4 - 0.4 * grown,
        "entropy": 2.0 + 2.5 * grown,
        "tuned bits": 2.9 + 0.3 * (times == "8x"),
        "tuned needle": 0.55,
    }[what]


EXPECTED = {
    "extended": told("extended", extended_as_expected),
    "positions": told("positions", as_expected),
    "short_alibi": told("short_alibi", short_as_expected),
}
BUILT = {36: Verdict.CORRECTED} | dict.fromkeys((37, 38, 39, 40), Verdict.REFUTED)


@pytest.mark.parametrize("number", BUILT)
def test_races_decide_what_rests_on_them(number: int) -> None:
    question = load(number)
    assert question.raced is not None
    plain = question.figures(Session())
    without = question.decided(plain)
    figures = plain | question.raced({name: EXPECTED[name] for name in question.races})
    assert len(without) < len(question.decided(figures)) == len(question.claims)
    failing = [check.figure for claim in question.claims for check in claim.checks if not check.passed(figures)]
    assert failing == []
    assert question.verdict(figures) is BUILT[number]
    for spoken, unraced in zip(question.evidence(figures), question.evidence(plain), strict=True):
        assert spoken.startswith(unraced)
        assert len(spoken) > len(unraced)


@pytest.mark.parametrize("number", BUILT)
def test_races_that_say_nothing_confirm_nothing(number: int) -> None:
    """Where all arms are alike in every measure, no ordering is claimed and the correction has not shown."""
    question = load(number)
    assert question.raced is not None
    alike = {name: told(name, lambda arm, measure: 2.0) for name in question.races}
    figures = question.figures(Session()) | question.raced(alike)
    assert question.verdict(figures) is Verdict.NOT_REPRODUCED


# ---------------------------------------------------------------- numbers


def test_numbers_of_the_specification() -> None:
    """Computed independently (numpy) for the specification; ours must find the same."""
    q37 = load(37).figures(Session())
    assert [round(q37[f"ntk_base_{by}"]) for by in (2, 4)] == [20_221, 40_890]
    assert q37["ntk_base_8"] == pytest.approx(82_685, abs=1)
    assert [round(q37[f"yarn_factor_{by}"], 4) for by in (2, 4, 8)] == [1.0693, 1.1386, 1.2079]
    q38, q39, q40 = (load(number).figures(Session()) for number in (38, 39, 40))
    assert [q38[f"reach_{head}"] for head in range(1, 9)] == [10, 19, 37, 74, 148, 295, 590, 1179]
    assert (q39["renormalised_gap"], q39["row_gap"]) == (pytest.approx(0, abs=1e-14), pytest.approx(0, abs=1e-14))
    assert q40["saved"] == 786_432


def test_early_tokens_against_the_closed_form() -> None:
    """63 tokens of a window (64 of a document's first) cost log2 V bits, the others 1 bit."""
    q36 = load(36).figures(Session())
    vocabulary = 260
    for times in MULTIPLES:
        unknown = 63 * 8 // times + 1
        expected = (unknown * math.log2(vocabulary) + 1024 - unknown) / 1024
        assert q36[f"beside_{times}x"] == pytest.approx(expected, rel=1e-5)
    assert q36["same_1x"] == pytest.approx((63 * math.log2(vocabulary) + 65) / 128, rel=1e-5)
    assert q36["same_8x"] == pytest.approx(1.0, rel=1e-5)
    assert q36["logn_factor"] == pytest.approx(math.log(1024) / math.log(128))


def test_what_a_far_token_needs_by_the_closed_form() -> None:
    """Flat: ln of the others. Under a slope m: m d plus ln of the geometric series of the others."""
    q40 = load(40).figures(Session())
    assert q40["lead_flat"] == pytest.approx(math.log(1023))
    leads = []
    for head in range(1, 9):
        m = 2.0**-head
        others = (1 - math.exp(-1024 * m)) / (1 - math.exp(-m)) - math.exp(-1000 * m)
        leads.append(1000 * m + math.log(others))
    assert (q40["lead_least"], q40["lead_most"]) == (pytest.approx(min(leads)), pytest.approx(max(leads)))


@pytest.mark.parametrize("heads", [8, 12])
def test_slopes_and_bias_are_those_of_bloom(heads: int) -> None:
    """BLOOM keeps one row m j a head; ours has m (j - i), which differs by a constant in each row."""
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    row_H1T = build_alibi_tensor(torch.ones(1, 20), heads, torch.float32).double()
    ours_HT = lengths.bias_of_the_last(heads, 20)
    assert (ours_HT - row_H1T[:, 0] + row_H1T[:, 0, -1:]).abs().max() < 1e-5
    if heads == 8:
        assert (penalties(8, 20)[:, -1] - ours_HT).abs().max() == 0


def test_an_arm_that_diverged_counts_as_worse() -> None:
    def value(arm: str, measure: str) -> Any:
        diverged = arm == "multiplied weights" and measure.startswith("bits")
        return "diverged at step 3: loss is nan" if diverged else as_expected(arm, measure)

    raced = load(39).raced
    assert raced is not None
    figures = raced({"positions": told("positions", value)})
    assert figures["weights_minus_alibi_1x_lower"] == 8.0
    assert figures["scores_minus_alibi_1x_lower"] < 1.0


# ---------------------------------------------------------------- angles


@pytest.mark.parametrize(
    "scaling",
    [NoScaling(), Linear(by=8), NTK(by=8), DynamicNTK(by=1, trained=128), YaRN(by=8, trained=128)],
    ids=lambda scaling: scaling.kind,
)
def test_unmet_pairs_against_counting(scaling: Any) -> None:
    """A pair's angles by its frequency, compared one by one with those that it stood at in training."""
    plain = NoScaling().frequencies(16, 10_000.0).double()
    if isinstance(scaling, DynamicNTK):  # at eight times the length it is NTK by 8
        scaled = NTK(by=8).frequencies(16, 10_000.0).double()
    else:
        scaled = scaling.frequencies(16, 10_000.0).double()
    count = 0
    for was, now in zip(plain.tolist(), scaled.tolist(), strict=True):
        if was * 128 < 2 * math.pi:
            count += any(place * now % (2 * math.pi) > was * 128 * 1.001 for place in range(1024))
    assert lengths.unmet_pairs(scaling, 8) == count
    assert lengths.unmet_pairs(NoScaling(), 1) == 0


def test_nearest_keys_by_brute_force() -> None:
    weights_HS = torch.rand(3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights_HS /= weights_HS.sum(-1, keepdim=True)
    for share in (0.1, 0.5, 0.99):
        expected = [next(n for n in range(1, 51) if row[-n:].sum() >= share) for row in weights_HS]
        assert lengths.nearest(weights_HS, share) == expected
