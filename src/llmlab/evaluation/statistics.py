"""Intervals and verdicts: how sure a figure is, and whether two figures can be told apart.

Wilson's interval for proportions (Wilson 1927), Student's t for means (Student 1908), the paired percentile bootstrap
for differences of two systems on the same items (Efron 1979; Koehn 2004 for the paired form; Hesterberg 2015 for few).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Verdict = Literal["better", "worse", "not told apart"]

RESAMPLES = 2000
_CHUNK = 1 << 18  # draws at once: some MB, in a cache


class Estimate(NamedTuple):
    """A value, its confidence interval and the number of items it was taken from."""

    value: float
    low: float
    high: float
    n: int

    @property
    def interval(self) -> list[float | None]:
        """The bounds for JSON, which has no infinity: None where there is no bound."""
        return [bound if math.isfinite(bound) else None for bound in (self.low, self.high)]


def wilson(successes: int, n: int, confidence: float = 0.95) -> Estimate:
    """Wilson's score interval of a proportion; stays inside [0, 1] and is honest at 0 and n successes."""
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"{successes} successes of {n} is no proportion")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the bound equals the share exactly in real numbers, not in floating point.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Estimate(share, low, high, n)


def mean(values: ArrayLike, confidence: float = 0.95) -> Estimate:
    """Mean with Student's t interval; one value alone has an infinite interval."""
    array = _finite(values)
    n = len(array)
    centre = float(array.mean())
    if n == 1:
        return Estimate(centre, -math.inf, math.inf, 1)
    half = t_quantile(0.5 + confidence / 2, n - 1) * float(array.std(ddof=1)) / math.sqrt(n)
    return Estimate(centre, centre - half, centre + half, n)


def slope(x: ArrayLike, y: ArrayLike, confidence: float = 0.95) -> Estimate:
    """How much y grows with each x on the straight line of least squares, with Student's t interval; two points alone
    have an infinite one."""
    across, up = _finite(x), _finite(y)
    if across.shape != up.shape:
        raise ValueError(f"{len(across)} and {len(up)} values cannot be paired")
    n, apart = len(across), across - across.mean()
    spread = float(apart @ apart)
    if not spread:
        raise ValueError("all x are one and the same")
    value = float(apart @ up) / spread
    if n == 2:
        return Estimate(value, -math.inf, math.inf, 2)
    left = up - up.mean() - value * apart
    half = t_quantile(0.5 + confidence / 2, n - 2) * math.sqrt(float(left @ left) / (n - 2) / spread)
    return Estimate(value, value - half, value + half, n)


def ratio(
    sums: ArrayLike, weights: ArrayLike, seed: int, confidence: float = 0.95, resamples: int = RESAMPLES
) -> Estimate:
    """Sum over sum, such as bits over bytes by document, with a percentile bootstrap over the items."""
    return _bootstrap(_finite(sums), _finite(weights), seed, confidence, resamples)


def paired_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    seed: int,
    weights: ArrayLike | None = None,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Difference a - b of two systems measured on the same items: of means, or of sums over `weights`."""
    first, second = _finite(a), _finite(b)
    if first.shape != second.shape:
        raise ValueError(f"{len(first)} and {len(second)} items cannot be paired")
    shared = np.ones_like(first) if weights is None else _finite(weights)
    return _bootstrap(first - second, shared, seed, confidence, resamples)


def verdict(difference: Estimate, better: Literal["higher", "lower"] = "higher", margin: float = 0.0) -> Verdict:
    """What the interval of a difference allows to say; `margin` is the size that would matter."""
    low, high = (difference.low, difference.high) if better == "higher" else (-difference.high, -difference.low)
    if low > margin:
        return "better"
    return "worse" if high < -margin else "not told apart"


def _bootstrap(
    sums: NDArray[np.float64], weights: NDArray[np.float64], seed: int, confidence: float, resamples: int
) -> Estimate:
    if sums.shape != weights.shape:
        raise ValueError(f"{len(sums)} sums and {len(weights)} weights do not belong together")
    if weights.sum() <= 0:
        raise ValueError("the weights sum to nothing")
    n = len(sums)
    if n == 1:
        return Estimate(float(sums[0] / weights[0]), -math.inf, math.inf, 1)
    rng = np.random.default_rng(seed)
    drawn = np.empty(resamples)
    rows = max(1, _CHUNK // n)
    for start in range(0, resamples, rows):
        chosen = rng.integers(0, n, (min(rows, resamples - start), n))
        # A resample may hold nothing but items of weight zero; it says nothing and is left out below.
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn[start : start + len(chosen)] = sums[chosen].sum(1) / weights[chosen].sum(1)
    told = drawn[np.isfinite(drawn)]
    # Percentiles alone are too narrow for few items; Hesterberg 2015 (The American Statistician 69, section 4.3) takes
    # wider ones, so that the interval of a mean has the width of Student's.
    wider = math.sqrt(n / (n - 1)) * t_quantile(0.5 + confidence / 2, n - 1)
    tail = NormalDist().cdf(-wider)
    low, high = np.quantile(told, [tail, 1 - tail])
    return Estimate(float(sums.sum() / weights.sum()), float(low), float(high), n)


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0:
        raise ValueError(f"a row of at least one value is needed, not shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("a value is not finite")
    return array


def t_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t for a whole number of degrees of freedom, to about 1e-9."""
    if probability < 0.5:
        return -t_quantile(1 - probability, freedom)
    if freedom > 1000:  # Cornish-Fisher, Abramowitz & Stegun 26.7.5: error below 1e-10 here
        z = NormalDist().inv_cdf(probability)
        return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    low, high = 0.0, 1.0
    while t_cdf(high, freedom) < probability:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def t_cdf(t: float, freedom: int) -> float:
    """Distribution function of Student's t: the finite sums of Abramowitz & Stegun 26.7.3 and 26.7.4."""
    angle = math.atan2(t, math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    if freedom % 2:
        inside = angle + sine * _powers(cosine, range(2, freedom - 1, 2), first=cosine) if freedom > 1 else angle
        return 0.5 + inside / math.pi
    return 0.5 + sine * _powers(cosine, range(1, freedom - 1, 2), first=1.0) / 2


def _powers(cosine: float, steps: Sequence[int], first: float) -> float:
    """first * (1 + s/(s+1) cos^2 + s(s+2)/((s+1)(s+3)) cos^4 + ...) over the given s."""
    term = total = first
    for step in steps:
        term *= cosine * cosine * step / (step + 1)
        total += term
    return total
