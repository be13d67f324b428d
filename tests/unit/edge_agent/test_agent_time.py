from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.core.agent_time import (
    DamagedStamp,
    Moment,
    TimeStamp,
    read_stamp,
    resume_ms,
    write_stamp,
)
from lifecycle.clock import FakeClock, SteadyTime, SystemClock

NOW = 1_700_000_000_000.0
YEAR = 365 * 86_400_000.0
STAMP = TimeStamp(
    agent_ms=NOW, boot_id="this", boottime_ms=50_000.0, wall_ms=NOW, pool_offset_ms=7.0
)


@pytest.mark.parametrize(
    ("moment", "agent_ms"),
    [
        # Within one boot the wall clock has nothing to say.
        (Moment("this", 53_000.0, NOW + 3_000.0), NOW + 3_000.0),
        (Moment("this", 53_000.0, NOW + YEAR), NOW + 3_000.0),
        (Moment("this", 53_000.0, NOW - YEAR), NOW + 3_000.0),
        # After another it is all there is, unless it went back.
        (Moment("next", 1_000.0, NOW + 90_000.0), NOW + 90_000.0),
        (Moment("next", 1_000.0, NOW - YEAR), NOW),
        (Moment(None, 53_000.0, NOW + 90_000.0), NOW + 90_000.0),
        # The name of the boot is the same and its clock is not.
        (Moment("this", 10_000.0, NOW + 90_000.0), NOW + 90_000.0),
    ],
    ids=["", "a year on", "a year back", "reboot", "reboot, back", "no name", "moved"],
)
def test_time_goes_on_where_it_stopped(moment: Moment, agent_ms: float) -> None:
    assert resume_ms(STAMP, moment) == agent_ms


def test_the_first_start_goes_by_the_wall_clock() -> None:
    assert resume_ms(None, Moment("this", 1.0, NOW)) == NOW


def test_a_gateway_whose_clock_was_set_late_keeps_its_deadlines_over_a_reboot() -> None:
    # It started in 1970, was told the time meanwhile, and is off for a minute.
    in_1970 = TimeStamp(90_000.0, "this", 90_000.0, wall_ms=NOW)
    assert resume_ms(in_1970, Moment("next", 5_000.0, NOW + 60_000.0)) == 150_000.0


@given(
    st.floats(0, 1e13), st.floats(0, 1e12), st.floats(0, 1e13), st.sampled_from("ab")
)
def test_time_never_goes_back(
    agent_ms: float, boottime_ms: float, wall_ms: float, boot_id: str
) -> None:
    stamp = TimeStamp(agent_ms, "a", 5e11, 5e12)
    assert resume_ms(stamp, Moment(boot_id, boottime_ms, wall_ms)) >= agent_ms


@given(
    st.builds(
        TimeStamp,
        st.floats(0, 1e15),
        st.none() | st.text(max_size=40),
        st.floats(0, 1e15),
        st.floats(0, 1e15),
        st.none() | st.floats(-1e15, 1e15),
    )
)
def test_what_is_read_is_what_was_written(stamp: TimeStamp) -> None:
    assert read_stamp(write_stamp(stamp)) == stamp


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 100,
        write_stamp(STAMP)[:-5],
        b"[]",
        b"{}",
        json.dumps({"agent_ms": 1.0, "boot_id": "b"}).encode(),
    ],
)
def test_a_damaged_stamp_is_said_to_be(data: bytes) -> None:
    with pytest.raises(DamagedStamp):
        read_stamp(data)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("agent_ms", "soon"),
        ("agent_ms", None),
        ("boottime_ms", True),
        ("wall_ms", float("nan")),
        ("pool_offset_ms", float("inf")),
        ("boot_id", 3),
    ],
)
def test_a_stamp_with_a_value_that_cannot_be_is_damaged(name: str, value: Any) -> None:
    body = {**json.loads(write_stamp(STAMP)), name: value}
    with pytest.raises(DamagedStamp, match=name):
        read_stamp(json.dumps(body).encode())


def test_steady_time_starts_where_it_is_told_and_ignores_the_wall_clock() -> None:
    clock = FakeClock(monotonic_s=100.0)
    time = SteadyTime(clock, NOW)
    clock.advance(2.0)
    clock.jump_wall(-1e7)
    assert time.now_ms() == NOW + 2_000.0


def test_time_asleep_counts() -> None:
    clock = SystemClock()
    assert clock.boottime() >= clock.monotonic() - 0.001
