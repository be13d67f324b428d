"""Say what is wrong with what others send, without a line for each of a million."""

from __future__ import annotations

from typing import Any, Final

import structlog

from cloud_worker.core.allowance import Allowance
from lifecycle.clock import Clock

log = structlog.get_logger(__name__)

LINES: Final = 10
EVERY_S: Final = 10.0


class Complaints:
    """Warnings that repeat: a few of each kind, then how many were left out.

    The ledger counts them all.
    """

    def __init__(
        self, clock: Clock, *, lines: int = LINES, every_s: float = EVERY_S
    ) -> None:
        self._clock = clock
        self._lines = lines
        self._every_s = every_s
        self._allowances: dict[str, Allowance] = {}

    def say(self, event: str, **fields: Any) -> None:  # noqa: ANN401 - as structlog's
        """Log `event`, which is one of few, unless it was said often enough lately."""
        allowance = self._allowances.get(event)
        if allowance is None:
            allowance = self._allowances[event] = Allowance(self._lines, self._every_s)
        if not allowance.admits(self._clock.monotonic()):
            return
        if left_out := allowance.take_refused():
            fields["not_logged_before"] = left_out
        log.warning(event, **fields)
