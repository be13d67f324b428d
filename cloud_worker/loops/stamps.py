"""What every result says of the pool: who, when, and how long requests now wait."""

from __future__ import annotations

from collections.abc import Callable

from cloud_worker.core.results import Stamp
from lifecycle.clock import Clock


class Stamps:
    """Stamps for results.

    Args:
        worker: who answers.
        clock: for the time of the stamp.
        wait_s: how long a request of a model that arrives now will wait in the pool;
            of any model for None.
    """

    def __init__(
        self,
        worker: str,
        clock: Clock,
        wait_s: Callable[[str | None], float] = lambda _: 0.0,
    ) -> None:
        self._worker = worker
        self._clock = clock
        self._wait_s = wait_s

    def now(self, model: str | None = None) -> Stamp:
        """The stamp for a result of `model` that is made now."""
        wait_ms = round(self._wait_s(model) * 1000, 3)
        return Stamp(self._worker, self._clock.wall_ms(), wait_ms)
