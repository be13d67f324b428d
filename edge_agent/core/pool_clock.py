"""Learn how far the pool's clock is from the agent's. Requests expire by the pool's.

A result carries the pool's time at which it was made. That was before it was heard and
after its request was taken, so the true offset lies in `[seen, seen + round trip]`: what
lies outside is wrong for certain, and is left at once when it is wrong by much.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Final

# NTP steps a clock above a threshold and slews it below (RFC 5905, section 11.3). Its
# 128 ms would be within the noise of a pool of several machines.
STEP_MS: Final = 5_000.0
# A longer round trip says little: the result may have waited anywhere on its way.
SHORT_TRIP_MS: Final = 2_000.0
WEIGHT: Final = 0.2


@dataclass(frozen=True, slots=True)
class PoolClock:
    """What is known of the pool's clock.

    Attributes:
        offset_ms: added to the agent's time gives the pool's.
        known: whether a short round trip has been seen.
    """

    offset_ms: float = 0.0
    known: bool = False

    def after(self, seen_ms: float, round_trip_ms: float | None) -> PoolClock:
        """What is known after one more result.

        Args:
            seen_ms: the pool's time in the result, less the agent's when it was heard.
            round_trip_ms: from the request's arrival at the agent to its result; None
                when that is not known.
        """
        trip_ms = inf if round_trip_ms is None else max(0.0, round_trip_ms)
        if trip_ms > SHORT_TRIP_MS:
            possible = min(max(self.offset_ms, seen_ms), seen_ms + trip_ms)
            return PoolClock(possible, self.known)
        offset_ms = seen_ms + trip_ms / 2
        off_by_ms = offset_ms - self.offset_ms
        if self.known and abs(off_by_ms) <= STEP_MS:
            offset_ms = self.offset_ms + WEIGHT * off_by_ms
        return PoolClock(offset_ms, known=True)
