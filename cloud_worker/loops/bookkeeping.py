"""Say now and then what became of the requests, and cry out when one is missing."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from cloud_worker.loops.complaints import Complaints
from cloud_worker.loops.parcels import Room

log = structlog.get_logger(__name__)

EVERY_S: Final = 60.0


class Bookkeeping:
    """Compares the ledger with what the worker holds."""

    def __init__(
        self, room: Room, complaints: Complaints, *, every_s: float = EVERY_S
    ) -> None:
        self._room = room
        self._complaints = complaints
        self._every_s = every_s

    async def run(self) -> None:
        """Look at the books until cancelled."""
        while True:
            await asyncio.sleep(self._every_s)
            self._complaints.summarise()
            if self.balanced():
                log.debug("ledger", **self._room.ledger.counts(self._room.held))

    def close(self) -> None:
        """Say how it ended."""
        self._complaints.summarise()
        self.balanced()
        log.info("ledger", **self._room.ledger.counts(self._room.held))

    def balanced(self) -> bool:
        """Whether every request is accounted for; if not, it is counted and said."""
        ledger, held = self._room.ledger, self._room.held
        missing = ledger.mismatch(held)
        if missing:
            ledger.mismatches += 1
            log.error("ledger_mismatch", missing=missing, **ledger.counts(held))
        return not missing
