"""How much may wait, in all and for one device, and when there may be room again.

Pure accounts: nothing here looks at a file, and time comes as an argument in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

RATE_OVER_S: Final = 30.0
UNKNOWN_RETRY_S: Final = 5.0
LEAST_RETRY_S: Final = 1.0
MOST_RETRY_S: Final = 300.0


class Full(StrEnum):
    """Why a spill cannot be kept."""

    ROWS = "outbox_rows"
    BYTES = "outbox_bytes"
    DEVICE_ROWS = "device_rows"
    DEVICE_BYTES = "device_bytes"
    DISK_RESERVE = "disk_reserve"
    NOT_WRITTEN = "not_written"


@dataclass(frozen=True, slots=True)
class QuotaLimits:
    """Open requests, and the bytes they hold, above which one more is refused."""

    max_rows: int = 1_000_000
    max_bytes: int = 1024**3
    device_max_rows: int = 100_000
    device_max_bytes: int = 256 * 1024**2


@dataclass(frozen=True, slots=True)
class Refusal:
    """Which quota is used up, in words too."""

    full: Full
    reason: str


@dataclass(slots=True)
class Held:
    """What waits: for one device, or in all."""

    rows: int = 0
    bytes: int = 0


class Quotas:
    """What each device has waiting. Devices with nothing waiting cost nothing."""

    def __init__(self, limits: QuotaLimits) -> None:
        self._limits = limits
        self._devices: dict[str, Held] = {}
        self.total = Held()

    def restore(self, held: Mapping[str, Held]) -> None:
        """Begin with what an earlier process had accepted."""
        self._devices = dict(held)
        self.total = Held(
            sum(each.rows for each in held.values()),
            sum(each.bytes for each in held.values()),
        )

    def of(self, device: str) -> Held:
        """What one device has waiting."""
        return self._devices.get(device) or Held()

    def refusal(self, device: str, size: int) -> Refusal | None:
        """Why one more of `size` bytes is too much, or None when it is not."""
        limits, total = self._limits, self.total
        if total.rows >= limits.max_rows:
            return Refusal(
                Full.ROWS, f"the outbox holds {total.rows} requests, its limit"
            )
        if total.bytes + size > limits.max_bytes:
            return Refusal(
                Full.BYTES,
                f"the outbox holds {total.bytes} bytes of its {limits.max_bytes}",
            )
        own = self._devices.get(device)
        rows, held = (0, 0) if own is None else (own.rows, own.bytes)
        if rows >= limits.device_max_rows:
            return Refusal(
                Full.DEVICE_ROWS,
                f"device {device} has {rows} requests waiting, its quota "
                "(device_max_rows)",
            )
        if held + size > limits.device_max_bytes:
            return Refusal(
                Full.DEVICE_BYTES,
                f"device {device} has {held} bytes waiting of its quota of "
                f"{limits.device_max_bytes} (device_max_bytes)",
            )
        return None

    def take(self, device: str, size: int) -> None:
        """One more waits."""
        own = self._devices.get(device)
        if own is None:
            own = self._devices[device] = Held()
        own.rows += 1
        own.bytes += size
        self.total.rows += 1
        self.total.bytes += size

    def give_back(self, device: str, size: int) -> None:
        """One waits no more."""
        own = self._devices[device]
        own.rows -= 1
        own.bytes -= size
        self.total.rows -= 1
        self.total.bytes -= size
        if own.rows == 0:
            del self._devices[device]


class DrainRate:
    """How fast room comes back: an exponentially weighted average over about 30 s."""

    def __init__(self, began_s: float) -> None:
        self._began_s = self._at_s = began_s
        self._rows = 0.0
        self._bytes = 0.0

    def ended(self, now_s: float, size: int) -> None:
        """A request of `size` bytes waits no more."""
        self._fade(now_s)
        self._rows += 1.0
        self._bytes += size

    def _fade(self, now_s: float) -> None:
        keep = math.exp((self._at_s - now_s) / RATE_OVER_S)
        self._at_s = now_s
        self._rows *= keep
        self._bytes *= keep

    def retry_after_s(
        self, now_s: float, *, rows: int = 0, size: int = 0, share: float = 1.0
    ) -> float:
        """How long until there may be room, from 1 to 300 s; 5 when nothing is known.

        Args:
            now_s: the time.
            rows: how many must end first.
            size: bytes that must end first.
            share: of what ends, the part that makes this room: 1, or a device's own.
        """
        self._fade(now_s)
        # Below one row in the window it is noise.
        if self._rows * share < 0.5:
            return UNKNOWN_RETRY_S
        # What the average has seen so far is less than its whole window.
        lived_s = max(1.0, now_s - self._began_s)
        window_s = RATE_OVER_S * (1.0 - math.exp(-lived_s / RATE_OVER_S))
        wait_s = rows * window_s / (self._rows * share)
        if size and self._bytes:
            wait_s = max(wait_s, size * window_s / (self._bytes * share))
        return min(MOST_RETRY_S, max(LEAST_RETRY_S, wait_s))
