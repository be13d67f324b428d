from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade.allowance import Allowance, bytes_allowance, spill_allowance

DAY_S = 86_400.0


@pytest.mark.parametrize(
    ("text", "amount", "period_s"),
    [
        ("50MB/day", 50e6, DAY_S),
        ("1.5 GiB / week", 1.5 * 2**30, 7 * DAY_S),
        ("100 b/s", 100, 1),
        ("8kb/min", 8_000, 60),
    ],
)
def test_a_budget_is_read_and_no_period_spends_more(
    text: str, amount: float, period_s: float
) -> None:
    budget = bytes_allowance(text, at_s=7.0)
    assert budget.at == 7.0
    assert budget.capacity + budget.rate * period_s == pytest.approx(amount)
    assert budget.left(7.0) == 1.0


@pytest.mark.parametrize("text", ["", "50MB", "50/day", "MB/day", "5MB/age", "0B/s"])
def test_what_is_no_budget_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match=r"50MB/day|nothing"):
        bytes_allowance(text)


@settings(deadline=None)
@given(
    spends=st.lists(st.tuples(st.floats(0, 20), st.floats(0, 5)), max_size=40),
)
def test_what_is_left_is_never_more_than_full_nor_deeper_in_debt_than_that(
    spends: list[tuple[float, float]],
) -> None:
    purse, at = Allowance(10.0, 1.0, 10.0), 0.0
    for amount, later in spends:
        at += later
        purse = purse.spent(amount, at)
        assert -10 <= purse.level <= 10
        assert 0 <= purse.left(at) <= 1
    assert purse.left(at + 21) == 1.0


def test_a_clock_that_goes_back_brings_nothing() -> None:
    purse = Allowance(10.0, 1.0, 5.0, at=100.0)
    assert purse.refilled(50.0) == purse
    assert purse.spent(1.0, 50.0).level == 4.0


def test_a_quota_spills_no_more_than_its_share_and_its_burst() -> None:
    purse, spilled = spill_allowance(0.1, burst=50), 0
    for request in range(2_000):
        if purse.refilled(request).level >= 1:
            purse = purse.spent(1, request)
            spilled += 1
    assert 0.1 * 1_990 <= spilled <= 0.1 * 2_050


@pytest.mark.parametrize(("share", "burst"), [(0.0, 10), (1.1, 10), (0.5, 0)])
def test_what_is_no_quota_is_refused(share: float, burst: int) -> None:
    with pytest.raises(ValueError, match="quota"):
        spill_allowance(share, burst)


def test_an_allowance_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity"):
        Allowance(0.0, 1.0, 0.0)
