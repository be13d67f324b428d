"""The exact test that one model is wrong more often than another by less than a limit.

On each example the difference is +1 (only the other is right), -1 (only this one is) or
0. Whether its mean is under `excess` is tested by the score statistic of a matched pair:
the distance from the limit over its standard error *at* the limit (Nam, "Establishing
Equivalence of Two Treatments", Biometrics 1997; Tango, "Equivalence Test and Confidence
Interval for the Difference in Proportions", Statistics in Medicine 1998).

Where that statistic rejects is not taken from the normal distribution, but from the
chances of every possible outcome, at the worst rate of differences there could be
(Hsueh, Liu & Chen, "Unconditional Exact Tests for Equivalence or Noninferiority for
Paired Binary Endpoints", Biometrics 2001). A sum tested as it stands has another
spread for each such rate and has to be feared for the widest; the score's is
the same at all of them, so the worst costs next to nothing.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

# Rates of more differences than this beyond the limit's own are not looked at: there the
# score is normal, and the level is met to within a hundredth of it (6 where all differ).
_BEYOND: Final = 150
# With more examples than make this many at the limit, the boundary of so many is kept.
_MOST_AT_LIMIT: Final = 150
_RATES: Final = 32

Numbers = NDArray[np.float64]


def excess_score(
    excess: NDArray[Any] | float,
    differ: NDArray[Any] | float,
    examples: int,
    limit: float,
) -> Numbers:
    """How far an excess lies above its limit, in standard errors; below is negative.

    Args:
        excess: where only the other is right less where only this one is; any shape.
        differ: where just one of them is right; as `excess`.
        examples: all of them, at least 1.
        limit: above 0, under 1.

    Returns:
        float64, of the shape of `excess`. It grows with both counts while under 0.
    """
    summed, moved = np.asarray(excess, np.float64), np.asarray(differ, np.float64)
    downs = (moved - summed) / 2
    # The likeliest rate of -1 if the mean were the limit: a root of a square.
    half = moved * (1 - limit) - 2 * limit * (examples - (moved + summed) / 2)
    rest = 8 * examples * downs * limit * (1 - limit)
    root = np.sqrt(half * half + rest)
    small = rest / (4 * examples * np.maximum(root - half, 1e-300))
    rate = np.where(half < 0, small, (half + root) / (4 * examples))
    spread = np.sqrt(examples * (2 * rate + limit - limit * limit))
    scored: Numbers = (summed - examples * limit) / spread
    return scored


def critical_score(examples: int, limit: float, level: float) -> float:
    """The score up to which "the excess is over its limit" is rejected.

    Args:
        examples: at least 1.
        limit: above 0, under 1.
        level: the chance that it is rejected where it is true, above 0, under 1.

    Returns:
        No more than the quantile of a normal distribution; minus infinity where so few
        examples can show nothing.
    """
    at_most = max(1, math.floor(_MOST_AT_LIMIT / limit))
    return _critical(min(examples, at_most), limit, level)


@lru_cache(maxsize=1024)
def _critical(n: int, limit: float, level: float) -> float:
    normal = NormalDist().inv_cdf(level)
    most = min(n, math.ceil(n * limit + _BEYOND + 8 * math.sqrt(n * limit + _BEYOND)))
    ups, downs = np.meshgrid(np.arange(most + 1), np.arange(most + 1), indexing="ij")
    inside = ups + downs <= most
    ups, downs = ups[inside], downs[inside]
    scores = excess_score(ups - downs, ups + downs, n, limit)
    order = np.argsort(scores, kind="stable")
    order = order[scores[order] <= normal]
    scores, ups, downs = scores[order], ups[order], downs[order]
    if not len(scores):
        return normal
    chances = _chances(ups, downs, n, limit, most)
    worst = np.cumsum(chances, axis=1).max(axis=0)
    kept = int(np.count_nonzero(worst <= level))
    if kept == len(scores):
        return normal
    # Between two outcomes, so that no rounding moves one to the other side.
    return -math.inf if kept == 0 else float(scores[kept - 1] + scores[kept]) / 2


def _chances(
    ups: NDArray[np.int64], downs: NDArray[np.int64], n: int, limit: float, most: int
) -> Numbers:
    """The chance of each outcome where the mean is the limit: [rates, outcomes]."""
    # All rates there are, where all outcomes are at hand.
    last = (1.0 - limit) * (1 - 1e-12) if most == n else _BEYOND / n
    beyond = np.geomspace(min(1e-3 / n, last / 2), last, _RATES)[:, np.newaxis]
    steps = np.arange(most)
    ordered = np.append(0.0, np.cumsum(np.log(n - steps)))  # log of n!/(n - k)!
    alike = np.append(0.0, np.cumsum(np.log(steps + 1)))  # log of k!
    differ = ups + downs
    logs = (
        (ordered[differ] - alike[ups] - alike[downs])
        + ups * np.log(limit + beyond / 2)
        + downs * np.log(beyond / 2)
        + (n - differ) * np.log(1 - limit - beyond)
    )
    chances: Numbers = np.exp(logs)
    return chances
