"""How many bytes an update may take, a second and a day. Pure: the caller has the clock."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

DAY_S: Final = 86_400
# What may come at once after a pause, in seconds of the rate.
BURST_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Rate:
    """A token bucket that may go into debt for one piece, and is then waited for.

    Attributes:
        bytes_per_s: what comes in.
        level: bytes that may be taken at `at_s`; under 0 they are owed.
    """

    bytes_per_s: float
    level: float
    at_s: float

    @classmethod
    def full(cls, bytes_per_s: float, now_s: float) -> Rate:
        """One that nothing was taken from."""
        return cls(bytes_per_s, bytes_per_s * BURST_S, now_s)

    def taking(self, size: int, now_s: float) -> Rate:
        """The same after a piece of `size` bytes was asked for."""
        passed_s = max(0.0, now_s - self.at_s)
        level = min(
            self.bytes_per_s * BURST_S, self.level + passed_s * self.bytes_per_s
        )
        return replace(self, level=level - size, at_s=max(now_s, self.at_s))

    def wait_s(self, now_s: float) -> float:
        """How long until a further piece may be asked for."""
        passed_s = max(0.0, now_s - self.at_s)
        return max(0.0, -(self.level + passed_s * self.bytes_per_s) / self.bytes_per_s)


@dataclass(frozen=True, slots=True)
class DaySpent:
    """What was pulled on one day of the device's own time.

    A clock that goes back brings no new budget.

    Attributes:
        day: whole days of the device's time since 1970.
        spent_bytes: pulled on it.
    """

    day: int = 0
    spent_bytes: int = 0

    def on(self, now_s: float) -> DaySpent:
        """The same at a later time.

        Args:
            now_s: Unix time in the device's own zone.
        """
        day = int(now_s // DAY_S)
        return DaySpent(day) if day > self.day else self

    def adding(self, size: int) -> DaySpent:
        """The same after `size` bytes came."""
        return replace(self, spent_bytes=self.spent_bytes + size)

    def has_room(self, size: int, bytes_per_day: int | None) -> bool:
        """Whether `size` bytes more stay within the budget.

        A piece that is larger than a whole day's budget may be the day's first.
        """
        if bytes_per_day is None or self.spent_bytes == 0:
            return True
        return self.spent_bytes + size <= bytes_per_day

    def ends_in_s(self, now_s: float) -> float:
        """How long until a new day's budget."""
        return max(0.0, (self.day + 1) * DAY_S - now_s)
