"""Which versions requests are taken for: what is in use must stay in memory."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection


class Usage:
    """What the intake asks of the versions ("name/version").

    Attributes:
        asked_s: when each was last asked for, in monotonic seconds.
        absent: those that answer and are not in memory; who asks sets `missed`.
        missed: somebody asked for one that is absent.
    """

    def __init__(self) -> None:
        self.asked_s: dict[str, float] = {}
        self.absent: set[str] = set()
        self.missed = asyncio.Event()
        self._being_taken: Counter[str] = Counter()

    @property
    def being_taken(self) -> set[str]:
        """Those for which something is being decoded, that will then wait."""
        return {key for key, count in self._being_taken.items() if count}

    def ask(self, key: str, now_s: float) -> None:
        """A request has arrived for this version."""
        self.asked_s[key] = now_s
        if key in self.absent:
            self.missed.set()

    def begin(self, keys: Collection[str]) -> None:
        """Something is being decoded for these, once for each time they are named."""
        self._being_taken.update(keys)

    def end(self, keys: Collection[str]) -> None:
        """It waits, or is answered."""
        if not keys:
            return
        self._being_taken.subtract(keys)
        self._being_taken = +self._being_taken
