"""How many publishes may wait for their PUBACK, as the link bears it.

Additive increase, multiplicative decrease, with slow start: TCP's congestion avoidance
(RFC 5681). Growth stops, and turns round, when PUBACKs come late against the smallest
round trip seen, as in LEDBAT (RFC 6817, whose target of 100 ms is used), so that a
slow link is not filled with what it cannot carry. Pure: times are given, in seconds.
"""

from __future__ import annotations

from typing import Final

FIRST: Final = 4
TARGET_S: Final = 0.1
# The smallest round trip is remembered for so many PUBACKs at least: routes change.
REMEMBERED: Final = 1000


class SendWindow:
    """The window of one link. `limit` bounds it; it is never below 1.

    Each publish takes a ticket and brings it back, acknowledged or lost.
    """

    def __init__(self, limit: int) -> None:
        self._limit = float(limit)
        self._size = float(min(FIRST, limit))
        self._slow_start_below = self._limit
        self._next_ticket = 0
        self._halved_at = 0
        self._smallest_s = self._smallest_before_s = float("inf")
        self._acknowledged = 0

    @property
    def size(self) -> int:
        """How many may be under way at once."""
        return int(self._size)

    def ticket(self) -> int:
        """For one publish that leaves now."""
        self._next_ticket += 1
        return self._next_ticket

    def acknowledged(self, taken_s: float, *, full: bool) -> None:
        """A PUBACK came.

        Args:
            taken_s: how long it took.
            full: whether the window was full; one that is not says nothing of how
                much more the link bears (RFC 7661).
        """
        self._remember(taken_s)
        smallest_s = min(self._smallest_s, self._smallest_before_s)
        if taken_s > smallest_s + max(TARGET_S, smallest_s):
            self._slow_start_below = min(self._slow_start_below, self._size)
            self._size = max(1.0, self._size - 1.0 / self._size)
        elif full:
            slow_start = self._size < self._slow_start_below
            step = 1.0 if slow_start else 1.0 / self._size
            self._size = min(self._limit, self._size + step)

    def _remember(self, taken_s: float) -> None:
        self._acknowledged += 1
        if self._acknowledged % REMEMBERED == 0:
            self._smallest_before_s = self._smallest_s
            self._smallest_s = taken_s
        else:
            self._smallest_s = min(self._smallest_s, taken_s)

    def lost(self, ticket: int) -> None:
        """No PUBACK came: the link went down, or it took too long.

        What was under way together is lost together, and counts once.
        """
        if ticket <= self._halved_at:
            return
        self._halved_at = self._next_ticket
        self._size = max(1.0, self._size / 2.0)
        self._slow_start_below = self._size
