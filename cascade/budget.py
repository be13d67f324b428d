"""The greatest threshold that keeps to a share spilled. Needs no label.

Of n exchangeable confidences, the share of fresh ones under the k-th smallest is at
most Beta(k, n + 1 - k), and just that without ties (David & Nagaraja, "Order
Statistics", 2003, section 2.1). So its mean is k / (n + 1) at most, and it exceeds b with
the chance that fewer than k of n trials of chance b succeed. How many of m fresh ones
lie under it is beta-binomial.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade.tails import at_least, upper_limit
from cascade.targets import Calibrated, MaxSpill, Unsupported, rounded_up


def threshold_for_spill(
    confidence: NDArray[np.floating[Any]], target: MaxSpill, fresh: int | None = None
) -> Calibrated | Unsupported:
    """The greatest threshold under which at most the target's share lies.

    Args:
        confidence: [n], no NaN; -inf where an answer is unusable.
        target: the share, and how surely.
        fresh: promise it of the share realised on so many fresh requests, and not of
            the share in the long run. A trial on data held out measures the former,
            a budget means the latter.

    Returns:
        The threshold, or why there is none: a share that even one example in n
        exceeds. `spilled` may be less than the target where confidences tie.

    Raises:
        ValueError: there is nothing, or a confidence is NaN.
    """
    sure = np.sort(np.asarray(confidence, np.float64))
    if not sure.size or np.isnan(sure).any():
        raise ValueError("a budget needs confidences, none of them NaN")
    n = len(sure)
    if target.share == 0:
        return _kept_all(sure, target)
    rank = _rank(n, target, fresh)
    if not rank:
        return _too_few(n, target, fresh)
    threshold = float(sure[rank - 1])
    if threshold == -math.inf:
        return _kept_all(sure, target)
    spilled = float(np.mean(sure < threshold))
    return Calibrated(threshold, target, spilled, spilled, n)


def examples_for_spill(target: MaxSpill) -> int:
    """How many confidences a target needs before any threshold is found for it.

    Raises:
        ValueError: the share is 0, which needs none.
    """
    if target.share == 0:
        raise ValueError("a share of 0 spills nothing and needs no example")
    if target.confidence is None:
        return math.ceil(1 / target.share) - 1
    return math.ceil(math.log(1 - target.confidence) / math.log1p(-target.share))


def _rank(n: int, target: MaxSpill, fresh: int | None) -> int:
    """Which of the smallest confidences is the threshold; 0 when none will do."""
    if target.confidence is None:
        return min(n, math.floor(target.share * (n + 1) + 1e-9))
    low, high = 0, n
    while low < high:
        middle = (low + high + 1) // 2
        if _surely(n, middle, fresh, target.share) >= target.confidence:
            low = middle
        else:
            high = middle - 1
    return low


def _surely(n: int, rank: int, fresh: int | None, share: float) -> float:
    """How surely at most `share` lies under the confidence of this rank."""
    if fresh is None:
        return at_least(rank, n, share)
    return float(_under(n, rank, fresh)[math.floor(share * fresh + 1e-9)])


def _under(n: int, rank: int, fresh: int) -> NDArray[np.float64]:
    """P(at most x of the fresh lie under this rank), for x from 0 to `fresh`."""
    x = np.arange(fresh, dtype=np.float64)
    steps = np.log((fresh - x) / (x + 1) * (rank + x) / (n - rank + fresh - x))
    logs = np.concatenate(([0.0], np.cumsum(steps)))
    chances = np.cumsum(np.exp(logs - logs.max()))
    result: NDArray[np.float64] = chances / chances[-1]
    return result


def _kept_all(
    ordered: NDArray[np.float64], target: MaxSpill
) -> Calibrated | Unsupported:
    unusable = float(np.mean(ordered == -math.inf))
    if unusable:
        return Unsupported(
            target, f"{unusable:.1%} of answers are unusable, and always spilled"
        )
    return Calibrated(-math.inf, target, 0.0, 0.0, len(ordered))


def _too_few(n: int, target: MaxSpill, fresh: int | None) -> Unsupported:
    if target.confidence is None:
        nearest = 1 / (n + 1)
    elif fresh is None:
        nearest = upper_limit(0, n, 1 - target.confidence)
    else:
        nearest = int(np.searchsorted(_under(n, 1, fresh), target.confidence)) / fresh
    nearest = rounded_up(math.nextafter(nearest, 1))
    return Unsupported(
        target,
        f"{n} examples are too few to set a threshold for so small a share",
        examples_for_spill(target) if fresh is None else None,
        MaxSpill(nearest, target.confidence) if nearest < 1 else None,
    )
