"""Amounts as people write them, and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.messages import Window
from fleet.core.amounts import (
    DAY_MINUTES,
    BadAmount,
    percent,
    read_bytes,
    read_seconds,
    read_share,
    read_window,
    seconds,
    window,
)


@pytest.mark.parametrize(
    ("text", "expected_s"),
    [
        ("90", 90),
        ("90s", 90),
        ("10m", 600),
        ("10 min", 600),
        ("1h30m", 5400),
        ("2D", 172_800),
    ],
)
def test_lengths_of_time_are_read(text: str, expected_s: float) -> None:
    assert read_seconds(text) == expected_s


@pytest.mark.parametrize("text", ["", "soon", "10 parsecs", "-5s", "5s later", "m"])
def test_what_is_no_length_of_time_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(BadAmount, match="10m"):
        read_seconds(text)


@given(st.integers(0, 10**7))
def test_a_length_of_time_that_is_shown_can_be_typed(value_s: int) -> None:
    assert read_seconds(seconds(value_s)) == value_s


def test_lengths_of_time_are_shown_in_their_largest_units() -> None:
    said = [seconds(each) for each in (0.5, 90, 600, 5400, 86_400, 100_000)]
    assert said == ["0.5s", "1m30s", "10m", "1h30m", "1d", "1d3h46m40s"]


def test_shares_are_read_as_percentages_and_as_fractions() -> None:
    assert read_share("5%") == read_share("0.05") == 0.05
    assert percent(0.05) == "5%"
    for text in ("5", "-1%", "101%", "a few", "%"):
        with pytest.raises(BadAmount, match="share"):
            read_share(text)


def test_bytes_are_read_in_units_of_a_thousand_and_of_1024() -> None:
    assert read_bytes("500") == 500
    assert read_bytes("100kB") == 100_000
    assert read_bytes("1.5 MB") == 1_500_000
    assert read_bytes("64MiB") == 64 * 1024**2
    with pytest.raises(BadAmount, match="20MB"):
        read_bytes("a lot")


@pytest.mark.parametrize(
    ("text", "days", "start", "minutes"),
    [
        ("02:00-05:00", [], 120, 180),
        ("22:00-04:00", [], 1320, 360),
        ("00:00-24:00", [], 0, 1440),
        ("Mon-Fri 02:30-05:00", [0, 1, 2, 3, 4], 150, 150),
        ("fri-mon 1:00-2:00", [0, 4, 5, 6], 60, 60),
        ("Saturday, sun 20:00-24:00", [5, 6], 1200, 240),
    ],
)
def test_windows_are_read(text: str, days: list[int], start: int, minutes: int) -> None:
    read = read_window(text)
    assert (read.days, read.start_minute, read.minutes) == (days, start, minutes)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("at night", "02:00-05:00"),
        ("02:00", "02:00-05:00"),
        ("Funday 02:00-05:00", "'funday' is no day"),
        ("25:00-26:00", "25:00 is no time"),
        ("02:75-03:00", "02:75 is no time"),
        ("24:00-02:00", "write 00:00"),
    ],
)
def test_what_is_no_window_is_refused_by_name(text: str, names: str) -> None:
    with pytest.raises(BadAmount, match=names):
        read_window(text)


@given(
    st.lists(st.integers(0, 6), unique=True).map(sorted),
    st.integers(0, DAY_MINUTES - 1),
    st.integers(1, DAY_MINUTES),
)
def test_a_window_that_is_shown_can_be_typed(
    days: list[int], start: int, minutes: int
) -> None:
    given_ = Window(days=days, start_minute=start, minutes=minutes)
    assert read_window(window(given_)) == given_
