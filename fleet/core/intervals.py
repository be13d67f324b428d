"""Intervals for what a fleet shows of a version, true at all times at once.

A gate is looked at each second for days. An interval that holds with 99 % at one look is
sure to be wrong at some of them; these hold with 99 % at *all* looks together, so
stopping at the first proof is allowed (ADR 16).

`share` is exact for trials alike: the likelihood of what was seen, averaged over all
shares above a limit, is a bet against shares up to the limit that is fair at best, and
wins 100-fold with a chance of 1 % at most, ever (Ville 1939; Robbins, "Statistical
Methods Related to the Law of the Iterated Logarithm", Annals of Mathematical
Statistics 1970).

`pooled` and `difference` are of requests of many agents, which are not alike: one broken
agent of ten fails all of its thousand requests. Their spread is that of shares *or* that
between agents, whichever is greater, and the interval is Robbins' normal mixture on
the scale of information (Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas, "Time-uniform
central limit theory and asymptotic confidence sequences", Annals of Statistics 2024).
A difference is taken within each agent and then averaged with the weights of
Cochran, and of Mantel & Haenszel (1959), so that an agent with hard pictures
does not look like a bad version.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from cascade.tails import at_most

STEPS: Final = 30
LEAST: Final = 1e-300
# A limit of 0 names no width at which an interval could be tightest.
NARROWEST: Final = 1e-3


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value that lies in `low` to `high`; `sample` is what it was learned from."""

    value: float
    low: float
    high: float
    sample: int


@dataclass(frozen=True, slots=True)
class Count:
    """So many of so many."""

    hits: int
    trials: int


@dataclass(frozen=True, slots=True)
class Pair:
    """The new version's count on one agent, and that of the version before."""

    new: Count
    before: Count


def share(hits: int, trials: int, miss: float) -> Estimate:
    """A share of trials that are alike.

    Args:
        hits: 0..trials.
        trials: at least 0; 0 tells nothing.
        miss: the chance that one end of the interval is ever wrong, above 0, under 1.
    """
    if trials <= 0:
        return Estimate(0.0, 0.0, 1.0, 0)
    low = _lowest(hits, trials, miss)
    return Estimate(
        hits / trials, low, 1 - _lowest(trials - hits, trials, miss), trials
    )


def surely_above(hits: int, trials: int, limit: float, miss: float) -> bool:
    """Whether `share(hits, trials, miss).low` is over `limit`, without finding it."""
    if trials <= 0 or hits <= limit * trials:
        return False
    if limit <= 0:
        return True
    missed = trials - hits
    # The likelihood averaged over the shares above the limit, over that at the limit. What
    # lies above it of a beta distribution is a tail of a binomial one.
    above = at_most(hits, trials + 1, limit)
    won = (
        math.lgamma(hits + 1)
        + math.lgamma(missed + 1)
        - math.lgamma(trials + 2)
        + math.log(max(above, LEAST))
        - math.log(1 - limit)
        - hits * math.log(limit)
        - missed * math.log(1 - limit)
    )
    return won > -math.log(miss)


def pooled(counts: Sequence[Count], miss: float, scale: float) -> Estimate:
    """The share of all requests of several agents.

    Args:
        counts: of each agent.
        miss: see `share`.
        scale: the width at which the interval should be tightest, such as the limit.
    """
    used = [each for each in counts if each.trials > 0]
    trials = sum(each.trials for each in used)
    if not trials:
        return Estimate(0.0, -math.inf, math.inf, 0)
    hits = sum(each.hits for each in used)
    value = hits / trials
    smooth = _smoothed(hits, trials)
    between = math.fsum((each.hits - value * each.trials) ** 2 for each in used)
    spread = max(
        smooth * (1 - smooth) / trials, _widened(between, len(used)) / trials**2
    )
    return _around(value, spread, miss, scale, trials)


def difference(pairs: Sequence[Pair], miss: float, scale: float) -> Estimate:
    """How much greater the new version's share is than that of the version before.

    Args:
        pairs: of each agent; one without both sides tells nothing.
        miss: see `share`.
        scale: see `pooled`.
    """
    used = [each for each in pairs if each.new.trials > 0 and each.before.trials > 0]
    if not used:
        return Estimate(0.0, -math.inf, math.inf, 0)
    weights = [
        each.new.trials * each.before.trials / (each.new.trials + each.before.trials)
        for each in used
    ]
    total = math.fsum(weights)
    gaps = [
        each.new.hits / each.new.trials - each.before.hits / each.before.trials
        for each in used
    ]
    value = math.fsum(w * gap for w, gap in zip(weights, gaps, strict=True)) / total
    new = _smoothed(
        sum(each.new.hits for each in used), sum(each.new.trials for each in used)
    )
    before = _smoothed(
        sum(each.before.hits for each in used), sum(each.before.trials for each in used)
    )
    within = math.fsum(
        w**2
        * (
            new * (1 - new) / each.new.trials
            + before * (1 - before) / each.before.trials
        )
        for w, each in zip(weights, used, strict=True)
    )
    between = math.fsum(
        (w * (gap - value)) ** 2 for w, gap in zip(weights, gaps, strict=True)
    )
    spread = max(within, _widened(between, len(used))) / total**2
    sample = sum(each.new.trials for each in used)
    found = _around(value, spread, miss, scale, sample)
    # No difference of two shares is greater than one.
    return replace(found, low=max(-1.0, found.low), high=min(1.0, found.high))


def _around(
    value: float, spread: float, miss: float, scale: float, sample: int
) -> Estimate:
    """Robbins' normal mixture around a value of variance `spread`."""
    information, prior = 1 / spread, 1 / max(scale, NARROWEST) ** 2
    grown = information + prior
    half = math.sqrt(grown * math.log(grown / (prior * miss * miss))) / information
    return Estimate(value, value - half, value + half, sample)


def _smoothed(hits: int, trials: int) -> float:
    # One more of each, after Agresti & Caffo (2000): nine of nine are not sure to be ten of ten.
    return (hits + 1) / (trials + 2)


def _widened(between: float, agents: int) -> float:
    # The spread between few agents is itself known badly; between one it is not known.
    return between * agents / (agents - 1) if agents > 1 else 0.0


def _lowest(hits: int, trials: int, miss: float) -> float:
    """Up to where shares are surely exceeded."""
    low, high = 0.0, hits / trials
    for _ in range(STEPS):
        middle = (low + high) / 2
        if surely_above(hits, trials, middle, miss):
            low = middle
        else:
            high = middle
    return low
