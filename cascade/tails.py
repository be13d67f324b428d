"""Exact tail probabilities of counts, and the limits on a share that follow from them.

Nothing here is a normal approximation except `wilson`, which says so. Sources: Clopper &
Pearson, "The Use of Confidence or Fiducial Limits", Biometrika 1934; Wilson, "Probable
Inference", JASA 1927; the continued fraction of the incomplete beta function is
DLMF 8.17.22 (https://dlmf.nist.gov/8.17).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist


def at_most(count: int, trials: int, chance: float) -> float:
    """P(X ≤ count) for X binomial.

    Args:
        count: any integer.
        trials: at least 0.
        chance: of each trial, 0..1.
    """
    if count < 0:
        return 0.0
    if count >= trials or chance <= 0:
        return 1.0
    if chance >= 1:
        return 0.0
    return _beta_share(trials - count, count + 1, 1.0 - chance)


def at_least(count: int, trials: int, chance: float) -> float:
    """P(X ≥ count) for X binomial; arguments as `at_most`."""
    if count <= 0:
        return 1.0
    if count > trials or chance <= 0:
        return 0.0
    if chance >= 1:
        return 1.0
    return _beta_share(count, trials - count + 1, chance)


def upper_limit(count: int, trials: int, miss: float) -> float:
    """The share that is exceeded by the true one with a chance of `miss` at most.

    Clopper and Pearson's, one-sided; 1 when there is nothing to go by.

    Args:
        count: 0..trials.
        trials: at least 0.
        miss: above 0, under 1.
    """
    if count >= trials:
        return 1.0
    if count == 0:
        return -math.expm1(math.log(miss) / trials)
    low = 0.0
    step = (3 * math.sqrt(count + 1) + 10) / trials
    high = min(1.0, count / trials + step)
    while at_most(count, trials, high) > miss:
        low, high = high, min(1.0, high + step)
    return _root(lambda p: _log(at_most(count, trials, p)) - math.log(miss), low, high)


def lower_limit(count: int, trials: int, miss: float) -> float:
    """The share that the true one is under with a chance of `miss` at most.

    Args:
        count: 0..trials.
        trials: at least 0.
        miss: above 0, under 1.
    """
    return 1.0 - upper_limit(trials - count, trials, miss) if trials else 0.0


def clopper_pearson(
    count: int, trials: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Limits on a share that hold with at least `confidence`, whatever the share."""
    miss = (1.0 - confidence) / 2
    return lower_limit(count, trials, miss), upper_limit(count, trials, miss)


def wilson(count: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Limits on a share that hold with about `confidence`; narrower than the exact."""
    if not trials:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, room = count / trials, z * z / trials
    middle = (share + room / 2) / (1 + room)
    half = math.sqrt(share * (1 - share) * room + room * room / 4) / (1 + room)
    return max(0.0, middle - half), min(1.0, middle + half)


def _log(chance: float) -> float:
    return math.log(max(chance, 1e-300))


def _root(falling: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function crosses zero: false position, as in Illinois."""
    at_low, at_high = falling(low), falling(high)
    side = 0
    while high - low > 1e-13 + 1e-11 * high and at_high < 0:
        middle = (low * at_high - high * at_low) / (at_high - at_low)
        value = falling(middle)
        if abs(value) < 1e-11:
            return middle
        if value > 0:
            low, at_low = middle, value
            at_high /= 2 if side > 0 else 1
            side = 1
        else:
            high, at_high = middle, value
            at_low /= 2 if side < 0 else 1
            side = -1
    return high


def _beta_share(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), 0 < x < 1."""
    front = math.exp(
        math.lgamma(a + b)
        - math.lgamma(a)
        - math.lgamma(b)
        + a * math.log(x)
        + b * math.log1p(-x)
    )
    # The fraction settles quickly only on this side of the mean.
    if x < (a + 1) / (a + b + 2):
        return min(1.0, front * _fraction(a, b, x) / a)
    return max(0.0, 1.0 - front * _fraction(b, a, 1.0 - x) / b)


def _fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of the incomplete beta function, by Lentz's method."""
    tiny = 1e-300
    c, d = 1.0, 1.0 / _kept_off_zero(1.0 - (a + b) * x / (a + 1), tiny)
    value = d
    for m in range(1, 10_000):
        before = value
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1.0 / _kept_off_zero(1.0 + term * d, tiny)
            c = _kept_off_zero(1.0 + term / c, tiny)
            value *= c * d
        if abs(value - before) <= 1e-15 * abs(value):
            break
    return value


def _kept_off_zero(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny
