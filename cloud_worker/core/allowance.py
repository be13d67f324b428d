"""Bound how often something is done, such as a line in the log, and count the rest."""

from __future__ import annotations

import math


class Allowance:
    """So many in each stretch of time.

    Args:
        most: in one stretch.
        every_s: its length, in seconds of the clock that `admits` is given.
    """

    def __init__(self, most: int, every_s: float) -> None:
        self._most = most
        self._every_s = every_s
        self._since_s = -math.inf
        self._admitted = 0
        self._refused = 0

    def admits(self, now_s: float) -> bool:
        """Whether it may be done once more now; if not, it is counted."""
        if now_s - self._since_s >= self._every_s:
            self._since_s, self._admitted = now_s, 0
        if self._admitted >= self._most:
            self._refused += 1
            return False
        self._admitted += 1
        return True

    def take_refused(self) -> int:
        """How many were refused since this was last asked."""
        refused, self._refused = self._refused, 0
        return refused
