"""A journal that writes a history, and ends its process where the test wants it."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lifecycle.journal import Event
from tests.faults.history import History


@dataclass(frozen=True, slots=True)
class KillAt:
    """Die at the n-th passing of an event, as `kill -9` would have it."""

    event: Event
    number: int

    @classmethod
    def read(cls, text: str) -> Self:
        """Read `accepted:3`.

        Raises:
            ValueError: it names no event, or no number.
        """
        event, _, number = text.partition(":")
        return cls(Event(event), int(number or 1))


class FaultJournal:
    """Writes every event down; then dies, if it is the one.

    Args:
        folder: of all histories of the run.
        who: `agent:NAME` or `worker:NAME`.
        kill_at: where to die; None to live.
    """

    def __init__(self, folder: Path, who: str, kill_at: KillAt | None = None) -> None:
        self.history = History(folder, who)
        self._kill_at = kill_at
        self._passed = 0

    def note(self, event: Event, device: str, id_: str, detail: str = "") -> None:
        """Something happened to a request."""
        self.history.note(event, device, id_, detail)
        if self._kill_at is not None and event is self._kill_at.event:
            self._passed += 1
            if self._passed >= self._kill_at.number:
                os.kill(os.getpid(), signal.SIGKILL)
