"""The test of a paired excess: as exact as it says, and no more afraid than that."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cascade.paired import critical_score, excess_score


def chance_of_rejecting(n: int, limit: float, rate: float, critical: float) -> float:
    """By every outcome, where the excess is its limit and so many differ."""
    up, down = (rate + limit) / 2, (rate - limit) / 2
    total = 0.0
    for ups in range(n + 1):
        for downs in range(n + 1 - ups):
            if excess_score(ups - downs, ups + downs, n, limit) <= critical:
                ways = math.comb(n, ups) * math.comb(n - ups, downs)
                still = (1 - rate) ** (n - ups - downs)
                total += ways * up**ups * down**downs * still
    return total


@pytest.mark.parametrize(("n", "limit"), [(12, 0.3), (40, 0.1), (60, 0.02)])
def test_a_true_excess_is_rejected_no_more_often_than_the_level(
    n: int, limit: float
) -> None:
    level = 0.1
    critical = critical_score(n, limit, level)
    rates = np.linspace(limit, 1, 12)
    chances = [chance_of_rejecting(n, limit, rate, critical) for rate in rates]
    assert 0.4 * level < max(chances) <= level * 1.01


@pytest.mark.parametrize(("rate", "limit"), [(0.02, 0.01), (0.06, 0.02), (0.3, 0.05)])
def test_many_examples_use_nearly_all_of_the_level(rate: float, limit: float) -> None:
    n, level, trials = 3_000, 0.05, 40_000
    chances = [(rate + limit) / 2, (rate - limit) / 2, 1 - rate]
    drawn = np.random.default_rng(7).multinomial(n, chances, trials)
    ups, downs = drawn[:, 0], drawn[:, 1]
    scores = excess_score(ups - downs, ups + downs, n, limit)
    rejected = np.mean(scores <= critical_score(n, limit, level))
    assert 0.045 <= rejected <= 0.0535  # 0.05, and three standard errors of 40,000


@given(
    n=st.integers(1, 10**9),
    limit=st.floats(1e-6, 0.99),
    level=st.sampled_from([0.01, 0.05, 0.3]),
)
@settings(deadline=None, max_examples=30)
def test_the_boundary_is_never_nearer_than_endless_data_would_have_it(
    n: int, limit: float, level: float
) -> None:
    critical = critical_score(n, limit, level)
    assert critical <= NormalDist().inv_cdf(level)
    if 100 < n * limit < n / 2:
        assert critical >= NormalDist().inv_cdf(level) - 0.1


@given(
    n=st.integers(1, 5_000),
    limit=st.floats(0.001, 0.9),
    first=st.tuples(st.integers(0, 5_000), st.integers(0, 5_000)),
    more=st.integers(0, 50),
)
@settings(deadline=None)
def test_more_excess_or_more_differences_are_never_better(
    n: int, limit: float, first: tuple[int, int], more: int
) -> None:
    ups, downs = first
    assume(ups + downs + 2 * more <= n)
    before = excess_score(ups - downs, ups + downs, n, limit)
    assert excess_score(ups + more - downs, ups + more + downs, n, limit) >= before
    if before < 0:
        both = excess_score(ups - downs, ups + downs + 2 * more, n, limit)
        assert both >= before - 1e-9


def test_an_excess_at_its_limit_is_no_distance_from_it() -> None:
    scores = excess_score(np.array([5, 0, 10]), np.array([7, 0, 10]), 500, 0.01)
    assert scores[0] == 0
    assert scores[1] < 0 < scores[2]


def test_one_example_shows_nothing() -> None:
    assert excess_score(0, 0, 1, 0.1) > critical_score(1, 0.1, 0.05)
