"""Since when agents could be heard without a break, whatever is done to the clock.

Times that are remembered are of the wall clock, which people and NTP set; how long
something lasted is of a clock that never jumps. When the two come apart, nobody knows
how long anybody was away, so all leases and soak times begin anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, Self

from fleet.core.devices import Device
from fleet.core.following import Now
from fleet.core.rollouts import Course, Told

# NTP moves a clock by less than this between two looks unless it sets it.
STEP_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Listening:
    """What the daemon knows of its own hearing.

    Attributes:
        wall_ms: Unix time at the last look, and
        at_s: the same on the clock that never jumps, as all below.
        since_s: since when agents have been heard without a break.
        heard_s: when the last one was.
    """

    wall_ms: int
    at_s: float
    since_s: float
    heard_s: float

    @classmethod
    def begun(cls, wall_ms: int, at_s: float) -> Self:
        """A daemon that starts now: nobody was heard before."""
        return cls(wall_ms, at_s, at_s, at_s)

    def heard(self, at_s: float, silent_after_s: float) -> Self:
        """Somebody is heard at `at_s`."""
        if at_s - self.heard_s > silent_after_s:
            # Nobody was, which is no agent's fault: all leases begin anew.
            return replace(self, heard_s=at_s, since_s=at_s)
        return replace(self, heard_s=at_s)

    def looking(self, wall_ms: int, at_s: float) -> tuple[Self, float]:
        """The same at a look, and by how many seconds the wall clock was set since."""
        set_s = (wall_ms - self.wall_ms) / 1000 - (at_s - self.at_s)
        if abs(set_s) <= STEP_S:
            return replace(self, wall_ms=wall_ms, at_s=at_s), 0.0
        return replace(self, wall_ms=wall_ms, at_s=at_s, since_s=at_s), set_s

    def now(self, silent_after_s: float) -> Now:
        """The time of the last look. While nobody is heard no lease runs."""
        quiet = self.at_s - self.heard_s > silent_after_s
        listened_s = 0.0 if quiet else self.at_s - self.since_s
        since_ms = self.wall_ms - round(listened_s * 1000)
        return Now(self.wall_ms, since_ms, silent_after_s)


def rebased(course: Course, now_ms: int) -> Course:
    """A course without times that are still to come: such a time is now.

    A clock that was set back leaves them. Nothing would move on until it has caught up;
    so what had begun begins again.
    """
    told = {agent: _told(each, now_ms) for agent, each in course.told.items()}
    settled_ms = course.settled_at_ms
    return replace(
        course,
        since_ms=min(course.since_ms, now_ms),
        wave_since_ms=min(course.wave_since_ms, now_ms),
        settled_at_ms=None if settled_ms is None else min(settled_ms, now_ms),
        told=told,
    )


def rebased_devices(devices: Iterable[Device], now_ms: int) -> list[Device]:
    """Those that were seen at a time that is still to come, as seen now."""
    return [
        replace(
            each, last_seen_ms=now_ms, first_seen_ms=min(each.first_seen_ms, now_ms)
        )
        for each in devices
        if each.last_seen_ms > now_ms
    ]


def _told(told: Told, now_ms: int) -> Told:
    if max(told.since_ms, told.told_at_ms) <= now_ms:
        return told
    return replace(
        told,
        since_ms=min(told.since_ms, now_ms),
        told_at_ms=min(told.told_at_ms, now_ms),
    )
