"""The agent's own time goes on over restarts, and is noted so that it can."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from edge_agent.adapters.time_stamp import TimeStampFile
from edge_agent.core.agent_time import TimeStamp, resume_ms
from lifecycle.clock import Clock, SteadyTime

log = structlog.get_logger(__name__)

STAMP_EVERY_S: Final = 10.0


class Timekeeping:
    """The time of the last life, resumed, whatever the wall clock says now.

    Attributes:
        time: the agent's own.
        last_offset_ms: added to it gave the pool's time when it was last noted.
    """

    def __init__(self, stamps: TimeStampFile, clock: Clock) -> None:
        self._stamps = stamps
        self._clock = clock
        last = stamps.read()
        self.last_offset_ms = None if last is None else last.pool_offset_ms
        self.time = SteadyTime(clock, resume_ms(last, stamps.now(clock)))

    def save(self, pool_offset_ms: float | None) -> None:
        """Note it; a disk that does not let it costs a line in the log."""
        stamp = TimeStamp.at(
            self.time.now_ms(), self._stamps.now(self._clock), pool_offset_ms
        )
        try:
            self._stamps.write(stamp)
        except OSError as error:
            log.error("time_stamp_not_written", error=str(error))

    async def run(self, pool_offset_ms: Callable[[], float | None]) -> None:
        """Note it now and then; endless."""
        while True:
            await asyncio.to_thread(lambda: self.save(pool_offset_ms()))
            await asyncio.sleep(STAMP_EVERY_S)
