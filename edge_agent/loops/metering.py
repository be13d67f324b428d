"""Hold pulls to a rate and to a day's budget; all that is pulled is counted here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from edge_agent.adapters.day_file import DayFile
from edge_agent.core.pull_budget import DaySpent, Rate
from edge_agent.loops.asking import BudgetSpent

# What a killed process may forget that it spent.
SAVE_EVERY_BYTES: Final = 512 * 1024


class Metering:
    """Counts one agent's bytes.

    Args:
        file: keeps the day's sum.
        local_now_s: Unix time in the device's own zone, so that its day is the day.
    """

    def __init__(self, file: DayFile, *, local_now_s: Callable[[], float]) -> None:
        self._file = file
        self._local_now_s = local_now_s
        self._spent: DaySpent | None = None
        self._unsaved = 0
        self._rate: Rate | None = None
        self._bytes_per_day: int | None = None

    def limit(self, *, bytes_per_s: int | None, bytes_per_day: int | None) -> None:
        """What holds from now on; None: no limit."""
        if bytes_per_s is None:
            self._rate = None
        elif self._rate is None or self._rate.bytes_per_s != bytes_per_s:
            self._rate = Rate.full(bytes_per_s, self._now_s())
        self._bytes_per_day = bytes_per_day

    @property
    def spent_bytes(self) -> int:
        """Pulled today."""
        return self._today().spent_bytes

    async def take(self, size: int) -> None:
        """Wait until `size` bytes may be asked for, and count them.

        Raises:
            BudgetSpent: they are more than is left of the day's budget.
        """
        today = self._today()
        if not today.has_room(size, self._bytes_per_day):
            raise BudgetSpent(
                f"{today.spent_bytes} of {self._bytes_per_day} bytes of today's budget "
                "are used; the rest is pulled tomorrow",
                retry_after_s=today.ends_in_s(self._local_now_s()),
            )
        self.charge(size)
        if self._rate is not None:
            await asyncio.sleep(self._rate.wait_s(self._now_s()))

    def give_back(self, size: int) -> None:
        """So many bytes that were taken did not come."""
        self._count(-size)

    def charge(self, size: int) -> None:
        """So many bytes came that nobody had taken."""
        self._count(size)

    def save(self) -> None:
        """Keep the day's sum; blocking, and as good as the disk allows."""
        with suppress(OSError):  # a full disk is told by what it keeps from working
            self._file.save(self._today())
            self._unsaved = 0

    def _count(self, size: int) -> None:
        self._spent = self._today().adding(size)
        if self._rate is not None:
            self._rate = self._rate.taking(size, self._now_s())
        self._unsaved += abs(size)
        if self._unsaved >= SAVE_EVERY_BYTES:
            self.save()

    def _today(self) -> DaySpent:
        spent = self._file.load() if self._spent is None else self._spent
        self._spent = spent.on(self._local_now_s())
        return self._spent

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()
