"""Windows in the device's own time, over midnight and over the week."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.messages import Window
from edge_agent.core.fit import put_off_until

MONDAY = datetime(2026, 11, 23, tzinfo=UTC)


def at(day: int, hour: int, minute: int = 0) -> datetime:
    return MONDAY + timedelta(days=day, hours=hour, minutes=minute)


NIGHTS = Window(days=[5, 6], start_minute=22 * 60, minutes=240)


@pytest.mark.parametrize(
    ("now", "is_open"),
    [
        (at(5, 21, 59), False),
        (at(5, 22), True),
        (at(6, 1, 59), True),  # Saturday's, over midnight.
        (at(6, 2), False),
        (at(7, 1), True),  # Sunday's, in the small hours of Monday.
        (at(4, 23), False),
        (at(5, 1), False),  # Friday has none.
    ],
)
def test_a_window_belongs_to_the_day_it_begins_on(now: datetime, is_open: bool) -> None:
    assert (put_off_until(NIGHTS, now) is None) is is_open


def test_who_waits_is_told_when_it_opens() -> None:
    assert "opens Saturday 22:00" in (put_off_until(NIGHTS, at(0, 12)) or "")
    assert "opens Sunday 22:00" in (put_off_until(NIGHTS, at(6, 3)) or "")


def test_without_a_window_the_time_does_not_matter() -> None:
    assert put_off_until(None, None) is None
    assert "does not know the time" in (put_off_until(NIGHTS, None) or "")


windows = st.builds(
    Window,
    days=st.lists(st.integers(0, 6), max_size=7),
    start_minute=st.integers(0, 1439),
    minutes=st.integers(1, 1440),
)


@given(windows, st.integers(0, 14 * 1440))
def test_a_window_opens_on_its_days_and_is_shut_when_it_has_ended(
    window: Window, minute: int
) -> None:
    now = MONDAY + timedelta(minutes=minute)
    midnight = now.replace(hour=0, minute=0)
    opens = midnight + timedelta(minutes=window.start_minute)
    ends = opens + timedelta(minutes=window.minutes)
    if not window.days or opens.weekday() in window.days:
        assert put_off_until(window, opens) is None
        assert put_off_until(window, ends - timedelta(minutes=1)) is None
    tomorrow = opens + timedelta(days=1)
    if window.days and opens.weekday() not in window.days and ends <= tomorrow:
        yesterday = (opens.weekday() - 1) % 7
        if yesterday not in window.days:
            assert put_off_until(window, opens) is not None
    # It never fails to say when.
    assert put_off_until(window, now) is None or "opens" in (
        put_off_until(window, now) or ""
    )


def test_a_window_of_a_whole_day_never_closes() -> None:
    always = Window()
    assert all(put_off_until(always, at(0, hour)) is None for hour in range(48))
