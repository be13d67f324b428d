"""Time as a part that can be swapped. Nothing else reads a clock."""

from __future__ import annotations

import time
from typing import Final, Protocol

# Where there is none, time asleep is not counted.
_BOOTTIME: Final[int] = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Clock(Protocol):
    """Where a program takes time from."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary start; never jumps."""
        ...

    def boottime(self) -> float:
        """Seconds since the machine started, asleep or awake; never jumps."""
        ...

    def wall_ms(self) -> int:
        """Unix time in milliseconds; may jump."""
        ...


class SystemClock:
    """The machine's clocks."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary start; never jumps."""
        return time.monotonic()

    def boottime(self) -> float:
        """Seconds since the machine started, asleep or awake; never jumps."""
        return time.clock_gettime(_BOOTTIME)

    def wall_ms(self) -> int:
        """Unix time in milliseconds; may jump."""
        return time.time_ns() // 1_000_000


class SteadyTime:
    """Milliseconds that never jump while the process lives; time asleep counts.

    Comparable with what an earlier process wrote down, and safe for deadlines.

    Args:
        clock: what it goes by.
        start_ms: the time now; the wall clock's when left out.
    """

    def __init__(self, clock: Clock, start_ms: float | None = None) -> None:
        self._clock = clock
        if start_ms is None:
            start_ms = clock.wall_ms()
        self._offset_ms = start_ms - clock.boottime() * 1000.0

    def now_ms(self) -> float:
        """Unix time in milliseconds as it would be had the wall clock not moved."""
        return self._clock.boottime() * 1000.0 + self._offset_ms


class FakeClock:
    """A clock that moves only when told to."""

    def __init__(
        self, monotonic_s: float = 0.0, wall_ms: int = 1_700_000_000_000
    ) -> None:
        self._monotonic_s = monotonic_s
        self._wall_ms = wall_ms

    def monotonic(self) -> float:
        """Seconds since the start that was given."""
        return self._monotonic_s

    def boottime(self) -> float:
        """Seconds since the start that was given."""
        return self._monotonic_s

    def wall_ms(self) -> int:
        """Unix time in milliseconds."""
        return self._wall_ms

    def advance(self, seconds: float) -> None:
        """Move both clocks forward."""
        self._monotonic_s += seconds
        self._wall_ms += round(seconds * 1000)

    def jump_wall(self, seconds: float) -> None:
        """Move only the wall clock, as a correction by NTP does."""
        self._wall_ms += round(seconds * 1000)
