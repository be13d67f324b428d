from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade.tails import (
    at_least,
    at_most,
    clopper_pearson,
    lower_limit,
    upper_limit,
    wilson,
)


def counted(most: int, trials: int, chance: float) -> float:
    return math.fsum(
        math.comb(trials, k) * chance**k * (1 - chance) ** (trials - k)
        for k in range(most + 1)
    )


@settings(deadline=None)
@given(trials=st.integers(1, 200), chance=st.floats(0.001, 0.999), part=st.floats(0, 1))
def test_binomial_tails_are_those_of_the_sum_of_their_terms(
    trials: int, chance: float, part: float
) -> None:
    most = int(part * trials)
    assert at_most(most, trials, chance) == pytest.approx(
        counted(most, trials, chance), abs=1e-12
    )
    both = at_most(most, trials, chance) + at_least(most + 1, trials, chance)
    assert both == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("count", "chance", "wanted"),
    [(-1, 0.5, 0.0), (5, 0.5, 1.0), (2, 0.0, 1.0), (2, 1.0, 0.0)],
)
def test_tails_at_the_ends_are_certain(
    count: int, chance: float, wanted: float
) -> None:
    assert at_most(count, 5, chance) == wanted
    assert at_least(count + 1, 5, chance) == 1 - wanted


def test_tails_of_many_trials_are_where_the_middle_is() -> None:
    assert at_most(50_000, 1_000_000, 0.05) == pytest.approx(0.501, abs=1e-3)


def test_limits_on_a_share_are_the_textbook_ones() -> None:
    assert clopper_pearson(5, 100) == pytest.approx((0.01643, 0.11283), abs=1e-5)
    assert wilson(5, 100) == pytest.approx((0.02154, 0.11175), abs=1e-5)
    assert upper_limit(0, 59, 0.05) == pytest.approx(1 - 0.05 ** (1 / 59))


@pytest.mark.parametrize("limits", [clopper_pearson, wilson])
def test_limits_on_nothing_all_and_none_stay_shares(limits: object) -> None:
    assert callable(limits)
    assert limits(0, 0) == (0.0, 1.0)
    assert limits(0, 9)[0] == 0.0
    assert limits(9, 9)[1] == 1.0


@settings(deadline=None)
@given(count=st.integers(0, 30), more=st.integers(0, 30))
def test_a_limit_is_missed_with_just_the_chance_that_was_asked(
    count: int, more: int
) -> None:
    trials = count + more
    upper, lower = upper_limit(count, trials, 0.1), lower_limit(count, trials, 0.1)
    assert lower <= upper
    if upper < 1:
        assert at_most(count, trials, upper) == pytest.approx(0.1, rel=1e-6)
    if lower > 0:
        assert at_least(count, trials, lower) == pytest.approx(0.1, rel=1e-6)
