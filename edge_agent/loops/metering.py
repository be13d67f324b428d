"""Hold pulls to a rate and to a day's budget; all that is pulled is counted here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

from edge_agent.adapters.day_file import DayFile
from edge_agent.core.pull_budget import DaySpent, Rate
from edge_agent.loops.asking import BudgetSpent

# What a killed process may forget that it spent.
SAVE_EVERY_BYTES: Final = 512 * 1024
MAX_RATES: Final = 64


class Meter(Protocol):
    """What bytes cost, as `PullMeter`."""

    async def take(self, size: int) -> None:
        """Wait until `size` bytes may be asked for; raise BudgetSpent."""
        ...

    def give_back(self, size: int) -> None:
        """So many bytes that were taken did not come."""
        ...

    def charge(self, size: int) -> None:
        """So many bytes came that nobody had taken."""
        ...


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
        self._rates: dict[int, Rate] = {}

    @property
    def spent_bytes(self) -> int:
        """Pulled today."""
        return self._today().spent_bytes

    def meter(self, bytes_per_s: int | None, bytes_per_day: int | None) -> PullMeter:
        """What one pull is held to; None: no limit.

        Pulls that may take the same number of bytes a second share it, and all share
        the day.
        """
        if len(self._rates) >= MAX_RATES:
            self._rates.clear()
        return PullMeter(self, bytes_per_s, bytes_per_day)

    def save(self) -> None:
        """Keep the day's sum; blocking, and as good as the disk allows."""
        with suppress(OSError):  # a full disk is told by what it keeps from working
            self._file.save(self._today())
            self._unsaved = 0

    def check_day(self, size: int, bytes_per_day: int | None) -> None:
        """Return if `size` bytes more are within a day's budget.

        Raises:
            BudgetSpent: they are not.
        """
        today = self._today()
        if today.has_room(size, bytes_per_day):
            return
        raise BudgetSpent(
            f"{today.spent_bytes} of {bytes_per_day} bytes of today's budget are used; "
            "the rest is pulled tomorrow",
            retry_after_s=today.ends_in_s(self._local_now_s()),
        )

    def count(self, size: int, bytes_per_s: int | None) -> float:
        """Count bytes, or take some back; says how long to wait for the rate."""
        self._spent = self._today().adding(size)
        self._unsaved += abs(size)
        if self._unsaved >= SAVE_EVERY_BYTES:
            self.save()
        if bytes_per_s is None:
            return 0.0
        now_s = asyncio.get_running_loop().time()
        rate = self._rates.get(bytes_per_s) or Rate.full(bytes_per_s, now_s)
        self._rates[bytes_per_s] = rate.taking(size, now_s)
        return self._rates[bytes_per_s].wait_s(now_s)

    def _today(self) -> DaySpent:
        spent = self._file.load() if self._spent is None else self._spent
        self._spent = spent.on(self._local_now_s())
        return self._spent


class PullMeter:
    """One pull's share of an agent's bytes."""

    def __init__(
        self, metering: Metering, bytes_per_s: int | None, bytes_per_day: int | None
    ) -> None:
        self._metering = metering
        self._bytes_per_s = bytes_per_s
        self._bytes_per_day = bytes_per_day

    async def take(self, size: int) -> None:
        """Wait until `size` bytes may be asked for, and count them.

        Raises:
            BudgetSpent: they are more than is left of the day's budget.
        """
        self._metering.check_day(size, self._bytes_per_day)
        await asyncio.sleep(self._metering.count(size, self._bytes_per_s))

    def give_back(self, size: int) -> None:
        """So many bytes that were taken did not come."""
        self._metering.count(-size, self._bytes_per_s)

    def charge(self, size: int) -> None:
        """So many bytes came that nobody had taken."""
        self._metering.count(size, self._bytes_per_s)
