"""Whether a process is alive, and whether it is ready: two questions, never one.

Alive: the event loop turns; one that does not should be ended. Ready: it does its work
now; one that is not should get none, and be left to come back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Final, Self

from lifecycle.clock import Clock
from lifecycle.page import Page

BEAT_S: Final = 1.0
STALLED_S: Final = 10.0


class Pulse:
    """Beats in the event loop while its block lasts; one that stands still misses beats.

    Args:
        clock: times the beats.
        stalled_s: after so long without one the loop counts as stalled.
    """

    def __init__(self, clock: Clock, *, stalled_s: float = STALLED_S) -> None:
        self._clock = clock
        self._stalled_s = stalled_s
        self._beat_s = clock.monotonic()
        self._next: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        self._beat()
        return self

    def __exit__(self, *_: object) -> None:
        if self._next is not None:
            self._next.cancel()

    def _beat(self) -> None:
        self._beat_s = self._clock.monotonic()
        # No task: it has to beat before the first loop starts and after the last ended.
        self._next = asyncio.get_running_loop().call_later(BEAT_S, self._beat)

    @property
    def silent_s(self) -> float:
        """Seconds since the last beat."""
        return self._clock.monotonic() - self._beat_s

    def page(self) -> Page:
        """`/healthz`: 200 while the loop turns, 503 with the reason when it stood still."""
        silent_s = self.silent_s
        if silent_s < self._stalled_s:
            return Page.text(HTTPStatus.OK, "alive")
        return Page.text(
            HTTPStatus.SERVICE_UNAVAILABLE,
            f"the event loop stood still for {silent_s:.0f} s",
        )


def readiness_page(why_not: Callable[[], str | None]) -> Page:
    """`/readyz`: 200, or 503 with what `why_not` says."""
    reason = why_not()
    if reason is None:
        return Page.text(HTTPStatus.OK, "ready")
    return Page.text(HTTPStatus.SERVICE_UNAVAILABLE, f"not ready: {reason}")
