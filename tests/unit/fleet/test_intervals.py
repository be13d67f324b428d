"""Intervals that hold at every look: how wide they are, and how often they are wrong."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.core.intervals import (
    Count,
    Pair,
    difference,
    pooled,
    share,
    surely_above,
)


@given(st.integers(0, 300), st.integers(0, 300), st.sampled_from([0.01, 0.05, 0.2]))
def test_a_share_lies_in_its_interval_which_narrows_with_confidence(
    hits: int, missed: int, miss: float
) -> None:
    trials = hits + missed
    came = share(hits, trials, miss)
    wider = share(hits, trials, miss / 10)
    assert 0 <= wider.low <= came.low <= came.value
    if trials:
        assert came.value <= came.high <= wider.high <= 1


@given(st.integers(0, 60), st.integers(1, 60), st.floats(0.01, 0.99))
def test_whether_a_share_is_surely_above_a_limit_is_what_its_interval_says(
    hits: int, missed: int, limit: float
) -> None:
    came = share(hits, hits + missed, 0.05)
    if abs(came.low - limit) > 1e-6:
        assert surely_above(hits, hits + missed, limit, 0.05) is (came.low > limit)


def test_of_nothing_nothing_is_known() -> None:
    assert share(0, 0, 0.01).high == 1
    assert pooled([], 0.01, 0.1).sample == 0
    assert difference([Pair(Count(1, 1), Count(0, 0))], 0.01, 0.1).sample == 0


def test_the_end_of_an_interval_is_where_a_bet_on_more_has_won_enough() -> None:
    low = share(3, 10, 0.01).low
    # The bet by its definition: the likelihood averaged over (low, 1), by a sum.
    steps = 100_000
    ps = [low + (1 - low) * (each + 0.5) / steps for each in range(steps)]
    mean = sum(p**3 * (1 - p) ** 7 for p in ps) / steps
    assert mean / (low**3 * (1 - low) ** 7) == pytest.approx(100, rel=1e-3)
    assert share(7, 10, 0.01).high == pytest.approx(1 - low)


def test_looking_after_every_trial_is_wrong_no_oftener_than_was_said() -> None:
    rng = random.Random(5)
    wrong = 0
    for _ in range(300):
        hits = 0
        for trials in range(1, 200):
            hits += rng.random() < 0.2
            if surely_above(hits, trials, 0.2, 0.05):
                wrong += 1
                break
    # Under 5 % of 300, and not by far: the bet is a good one.
    assert 2 <= wrong <= 15


def test_one_broken_agent_of_ten_does_not_prove_that_a_version_is_bad() -> None:
    counts = [Count(0, 1000)] * 9 + [Count(1000, 1000)]
    came = pooled(counts, 0.01, 0.02)
    assert came.value == pytest.approx(0.1)
    assert came.low < 0.02
    every = pooled([Count(100, 1000)] * 10, 0.01, 0.02)
    assert every.low > 0.02


def test_a_difference_is_taken_within_agents_and_not_between_them() -> None:
    # The version is the same; who is asked more now has the harder pictures.
    pairs = [
        Pair(new=Count(950, 1000), before=Count(95, 100)),
        Pair(new=Count(50, 100), before=Count(500, 1000)),
    ]
    came = difference(pairs, 0.01, 0.05)
    assert came.value == pytest.approx(0, abs=1e-12)
    assert came.low < 0 < came.high


@pytest.mark.parametrize(("drop", "most_alarms"), [(0.0, 4), (0.3, 400)])
def test_a_difference_looked_at_often_is_right_often_enough(
    drop: float, most_alarms: int
) -> None:
    rng = random.Random(11)
    alarms = 0
    for _ in range(400):
        easy = [rng.gauss(0.85, 0.05) for _ in range(10)]
        before = [Count(sum(rng.random() < p for _ in range(40)), 40) for p in easy]
        seen = [[0, 0] for _ in easy]
        for _ in range(12):
            for one, p in zip(seen, easy, strict=True):
                for _ in range(3):
                    one[0] += rng.random() < p - drop
                    one[1] += 1
            pairs = [
                Pair(Count(hits, trials), old)
                for (hits, trials), old in zip(seen, before, strict=True)
            ]
            if difference(pairs, 0.01, 0.15).high < 0:
                alarms += 1
                break
    assert alarms <= most_alarms
    if drop:
        assert alarms > 390
