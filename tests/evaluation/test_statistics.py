"""Intervals against known values and brute force; verdicts flip with the figures."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.evaluation import statistics
from llmlab.evaluation.statistics import Estimate, mean, paired_bootstrap, ratio, t_cdf, t_quantile, verdict, wilson


# Newcombe 1998, table I, method 3; and R's prop.test(correct = FALSE).
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1),
    ],
)
def test_wilson_gives_the_published_intervals(successes, n, low, high):
    found = wilson(successes, n)
    assert found.low == pytest.approx(low, abs=6e-5)
    assert found.high == pytest.approx(high, abs=6e-5)
    assert found.value == successes / n


@given(st.integers(1, 400), st.data())
@settings(deadline=None)
def test_wilson_stays_in_range_and_solves_its_equation(n, data):
    successes = data.draw(st.integers(0, n))
    found = wilson(successes, n, 0.9)
    assert 0 <= found.low <= found.value <= found.high <= 1
    for end in (found.low, found.high):  # the score test is exactly at its limit at both ends
        gap = abs(found.value - end)
        assert gap == pytest.approx(1.6448536269514722 * math.sqrt(end * (1 - end) / n), abs=1e-9)


@pytest.mark.parametrize("bad", [(1, 0), (-1, 5), (6, 5)])
def test_no_proportion_is_an_error(bad):
    with pytest.raises(ValueError, match="no proportion"):
        wilson(*bad)


@pytest.mark.parametrize(
    ("freedom", "probability", "quantile"),
    [
        (1, 0.975, 12.7062047362), (2, 0.975, 4.30265272991), (3, 0.95, 2.35336343480), (7, 0.9, 1.41492392780),
        (30, 0.975, 2.04227245630), (29, 0.995, 2.75638590367),
        (1000, 0.975, 1.96233908083), (1001, 0.975, 1.96233670276),
    ],
)  # fmt: skip
def test_students_quantiles_are_the_tables(freedom, probability, quantile):
    assert t_quantile(probability, freedom) == pytest.approx(quantile, rel=1e-9)
    assert t_quantile(1 - probability, freedom) == pytest.approx(-quantile, rel=1e-9)


@given(st.integers(1, 60), st.floats(-8, 8))
@settings(deadline=None, max_examples=40)
def test_students_distribution_is_the_integral_of_its_density(freedom, t):
    x = np.linspace(0, t, 20_001)
    density = (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
    norm = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    assert t_cdf(t, freedom) == pytest.approx(0.5 + norm * np.trapezoid(density, x), abs=1e-7)


def test_a_mean_has_students_interval():
    found = mean([1.0, 2.0, 3.0, 4.0])
    half = 3.18244630528 * np.std([1, 2, 3, 4], ddof=1) / 2
    assert found == Estimate(2.5, pytest.approx(2.5 - half), pytest.approx(2.5 + half), 4)
    assert mean([7.0]) == Estimate(7.0, -math.inf, math.inf, 1)


def test_the_mean_interval_covers_what_it_says():
    rng = np.random.default_rng(0)
    covered = [found.low <= 0 <= found.high for found in (mean(rng.normal(size=6), 0.9) for _ in range(2000))]
    assert 0.88 < np.mean(covered) < 0.92


def test_a_slope_is_that_of_least_squares_with_students_interval():
    """The interval by the tables: t(0.975, 3) = 3.182446."""
    found = statistics.slope([1, 2, 3, 4, 5], [2.1, 3.9, 6.2, 7.8, 10.1])
    assert found.value == pytest.approx(np.polyfit([1, 2, 3, 4, 5], [2.1, 3.9, 6.2, 7.8, 10.1], 1)[0])
    assert (found.low, found.high) == pytest.approx((1.799939, 2.180061), abs=1e-6)
    assert statistics.slope([0, 1], [0, 3]).interval == [None, None]
    with pytest.raises(ValueError, match="one and the same"):
        statistics.slope([2, 2, 2], [1, 2, 3])


def test_a_slopes_interval_covers_what_it_says():
    rng = np.random.default_rng(0)
    x = np.arange(12.0)
    found = [statistics.slope(x, 0.3 * x + rng.normal(0, 2, 12)) for _ in range(2000)]
    assert sum(one.low <= 0.3 <= one.high for one in found) / 2000 == pytest.approx(0.95, abs=0.015)


def test_the_paired_bootstrap_is_a_plain_loop_over_resamples():
    rng = np.random.default_rng(5)
    a, b, weights = rng.normal(size=23), rng.normal(size=23), rng.uniform(1, 9, 23)
    found = paired_bootstrap(a, b, seed=9, weights=weights, resamples=300)
    again, drawn = np.random.default_rng(9), []
    for _ in range(300):
        items = again.integers(0, 23, 23)
        drawn.append((a[items].sum() - b[items].sum()) / weights[items].sum())
    assert found.value == pytest.approx((a.sum() - b.sum()) / weights.sum())
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.01705, 0.98295])), abs=1e-4)


def test_the_bootstrap_does_not_depend_on_how_it_is_cut(monkeypatch):
    a, b = np.random.default_rng(1).normal(size=(2, 50))
    whole = paired_bootstrap(a, b, seed=3)
    monkeypatch.setattr(statistics, "_CHUNK", 170)
    assert paired_bootstrap(a, b, seed=3) == whole
    assert paired_bootstrap(a, b, seed=4) != whole


def test_a_ratio_weighs_its_items():
    found = ratio([10.0, 30.0], [5, 10], seed=0)
    assert found.value == pytest.approx(40 / 15)
    assert (found.low, found.high) == (2.0, 3.0)
    alone = ratio([3.0], [2], seed=0)
    assert alone == Estimate(1.5, -math.inf, math.inf, 1), "one item says nothing about others"
    assert alone.interval == [None, None]


def test_the_bootstrap_interval_covers_what_it_says_of_few_items():
    rng = np.random.default_rng(1)
    found = [paired_bootstrap(rng.normal(size=8), np.zeros(8), seed=n, resamples=500) for n in range(800)]
    assert 0.925 < np.mean([one.low <= 0 <= one.high for one in found]) < 0.975


def test_pairing_sees_what_independent_intervals_hide():
    rng = np.random.default_rng(2)
    hard = rng.normal(0, 5, 200)
    a, b = hard + 0.1, hard + rng.normal(0, 0.1, 200)
    assert mean(a).low < mean(b).value < mean(a).high
    assert verdict(paired_bootstrap(a, b, seed=0)) == "better"


@pytest.mark.parametrize(
    ("low", "high", "margin", "told"),
    [
        (0.1, 0.3, 0.0, "better"), (-0.3, -0.1, 0.0, "worse"), (-0.1, 0.3, 0.0, "not told apart"),
        (0.0, 0.3, 0.0, "not told apart"),
        (0.1, 0.3, 0.2, "not told apart"), (0.21, 0.3, 0.2, "better"), (-0.3, -0.1, 0.2, "not told apart"),
    ],
)  # fmt: skip
def test_a_verdict_follows_the_interval_and_flips_with_the_direction(low, high, margin, told):
    difference = Estimate((low + high) / 2, low, high, 9)
    flipped = {"better": "worse", "worse": "better"}.get(told, told)
    assert verdict(difference, "higher", margin) == told
    assert verdict(difference, "lower", margin) == flipped


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [[1.0]], [float("inf")]])
def test_values_that_are_no_row_of_numbers_are_refused(values):
    with pytest.raises(ValueError, match=r"finite|at least one"):
        mean(values)


def test_unpaired_items_are_refused():
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_bootstrap([1, 2], [1, 2, 3], seed=0)
    with pytest.raises(ValueError, match="sum to nothing"):
        ratio([1.0], [0.0], seed=0)
