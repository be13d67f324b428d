"""Leases, soak times and silence when somebody sets the clock of the fleet's machine."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fleet.core.devices import Device
from fleet.core.gates import Gate, GateKind
from fleet.core.listening import Listening, rebased, rebased_devices
from fleet.core.rollouts import AgentState, RolloutState, Wave
from tests.rollouts import Small

WALL_MS = 1_700_000_000_000
HOUR_S = 3600
SILENT_S = 90.0


def set_clock(fleet: Small, by_s: float) -> None:
    """Somebody sets the clock, and the daemon notices."""
    fleet.now_ms += round(by_s * 1000)
    late = rebased_devices(fleet.devices.values(), fleet.now_ms)
    fleet.devices.update((each.agent, each) for each in late)
    fleet.courses = {
        each: rebased(course, fleet.now_ms) for each, course in fleet.courses.items()
    }


def test_a_wave_soaks_once_more_after_the_clock_was_set_back() -> None:
    fleet = Small(["a", "b", "c"])
    one = fleet.start(waves=(Wave(count=1, soak_s=600), Wave()))
    fleet.look()
    fleet.obey()
    fleet.look()
    fleet.passes(300)
    set_clock(fleet, -24 * HOUR_S)
    fleet.passes(599)
    fleet.look()
    assert len(fleet.told(one)) == 1
    fleet.passes(1)
    fleet.look()
    assert len(fleet.told(one)) == 3


def test_who_falls_silent_after_the_clock_was_set_back_fails_after_its_lease() -> None:
    fleet = Small(["a", "b"])
    one = fleet.start(lease_s=600, gates=(Gate(GateKind.SILENCE, limit=0.9),))
    fleet.look()
    set_clock(fleet, -24 * HOUR_S)
    fleet.obey("b")
    fleet.passes(600, heard=["b"])
    fleet.look()
    assert fleet.course(one).state is RolloutState.RUNNING
    fleet.passes(1, heard=["b"])
    fleet.look()
    assert fleet.course(one).state is RolloutState.DONE
    assert fleet.course(one).told["a"].state is AgentState.PENDING


def test_times_that_are_past_stay_as_they_are() -> None:
    fleet = Small(["a"])
    one = fleet.start()
    fleet.look()
    fleet.passes(5)
    assert rebased(fleet.course(one), fleet.now_ms) == fleet.course(one)
    assert rebased_devices(fleet.devices.values(), fleet.now_ms) == []
    ahead = Device("x", WALL_MS, WALL_MS + 7)
    (now,) = rebased_devices([ahead], WALL_MS - 1)
    assert now == replace(ahead, first_seen_ms=WALL_MS - 1, last_seen_ms=WALL_MS - 1)


@pytest.mark.parametrize("by_s", [-HOUR_S, HOUR_S])
def test_leases_begin_anew_when_the_clock_is_set(by_s: float) -> None:
    listening = Listening.begun(WALL_MS, 50.0).heard(140.0, SILENT_S)
    listening, set_s = listening.looking(WALL_MS + 100_000, 150.0)
    assert set_s == 0
    assert listening.now(SILENT_S).listening_since_ms == WALL_MS
    wall_ms = WALL_MS + 110_000 + round(by_s * 1000)
    listening, set_s = listening.looking(wall_ms, 160.0)
    assert set_s == pytest.approx(by_s)
    assert listening.now(SILENT_S).listening_since_ms == wall_ms
    # And run on from there.
    listening, set_s = listening.looking(wall_ms + 5000, 165.0)
    assert set_s == 0
    now = listening.now(SILENT_S)
    assert (now.now_ms, now.listening_since_ms) == (wall_ms + 5000, wall_ms)


def test_a_clock_that_is_slowed_a_little_at_each_look_was_not_set() -> None:
    listening = Listening.begun(WALL_MS, 0.0)
    for second in range(1, 50):
        listening, set_s = listening.looking(WALL_MS + second * 1500, float(second))
        assert set_s == 0


def test_while_nobody_is_heard_no_lease_runs_however_the_clock_is_set() -> None:
    listening = Listening.begun(WALL_MS, 0.0).heard(10.0, SILENT_S)
    listening, _ = listening.looking(WALL_MS + 101_000, 101.0)
    now = listening.now(SILENT_S)
    assert now.listening_since_ms == now.now_ms
    listening = listening.heard(200.0, SILENT_S)
    listening, _ = listening.looking(WALL_MS + 230_000, 230.0)
    assert listening.now(SILENT_S).listening_since_ms == WALL_MS + 200_000
