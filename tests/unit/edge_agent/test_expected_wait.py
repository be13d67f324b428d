"""What the pool said of its wait fades until it says more."""

from __future__ import annotations

from edge_agent.core.expected_wait import ExpectedWait


def test_nothing_is_expected_before_anything_is_known() -> None:
    assert ExpectedWait().at(1e9) == 0.0


def test_half_is_left_after_as_long_as_it_was_and_five_seconds_at_least() -> None:
    assert ExpectedWait().heard(60.0, 100.0).at(160.0) == 30.0
    assert ExpectedWait().heard(1.0, 100.0).at(105.0) == 0.5


def test_a_clock_that_goes_back_changes_nothing() -> None:
    assert ExpectedWait().heard(2.0, 100.0).at(50.0) == 2.0


def test_a_wait_in_vain_never_lowers_what_is_expected() -> None:
    slow = ExpectedWait().heard(10.0, 0.0)
    assert slow.missed(1.0, 0.0).at(0.0) == 10.0
    assert slow.missed(20.0, 0.0).at(0.0) == 20.0
    assert slow.heard(0.1, 0.0).at(0.0) == 0.1
