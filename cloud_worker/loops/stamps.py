"""What every result says of the pool: who, when, and how long requests now wait."""

from __future__ import annotations

from typing import Final

from cloud_worker.core.results import Stamp
from lifecycle.clock import Clock

NEW_SHARE: Final = 0.2


class Stamps:
    """Stamps for results, with a moving average of the wait in this worker."""

    def __init__(self, worker: str, clock: Clock) -> None:
        self._worker = worker
        self._clock = clock
        self._wait_ms = 0.0

    def waited(self, wait_ms: float) -> None:
        """Take the wait of one more batch into the average."""
        self._wait_ms += NEW_SHARE * (wait_ms - self._wait_ms)

    def now(self) -> Stamp:
        """The stamp for a result that is made now."""
        return Stamp(self._worker, self._clock.wall_ms(), round(self._wait_ms, 3))
