"""Room for further spills: quotas, the disk's reserve, and when to ask again."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from edge_agent.core.quotas import (
    UNKNOWN_RETRY_S,
    DrainRate,
    Full,
    Held,
    QuotaLimits,
    Quotas,
    Refusal,
)

PLENTY_BYTES: Final = 1 << 62


class OutboxFull(Exception):
    """A spill cannot be kept safely; the device is refused and told why.

    Attributes:
        full: which limit it was.
        retry_after_s: when there may be room.
    """

    def __init__(
        self,
        reason: str,
        *,
        full: Full = Full.NOT_WRITTEN,
        retry_after_s: float = UNKNOWN_RETRY_S,
    ) -> None:
        super().__init__(reason)
        self.full = full
        self.retry_after_s = retry_after_s


class Room:
    """What open spills take, and what is left.

    Args:
        path: the outbox's file.
        limits: open spills and their bytes, in all and for one device.
        reserve_bytes: of the disk, that must stay free.
        now_s: any clock that never jumps.

    Attributes:
        quotas: what open spills take.
        free_bytes: of the disk, when it was last looked at.
    """

    def __init__(
        self,
        path: Path,
        limits: QuotaLimits,
        reserve_bytes: int,
        now_s: Callable[[], float],
    ) -> None:
        self.quotas = Quotas(limits)
        self.free_bytes = PLENTY_BYTES
        self._path = path
        self._reserve = reserve_bytes
        self._now_s = now_s
        self._drain = DrainRate(now_s())
        self._refused_since_taken = 0

    def restore(self, held: Mapping[str, Held]) -> None:
        """Begin with what waits in the file."""
        self.quotas.restore(held)
        self.free_bytes = free_bytes(self._path)

    def check(self, device: str, size: int) -> None:
        """Return if there is room for a request of `size` bytes.

        Raises:
            OutboxFull: there is none; says which limit it is.
        """
        refusal = self.quotas.refusal(device, size)
        if refusal is not None:
            raise self._full(refusal, device, size)
        if self.free_bytes < self._reserve:
            # Nothing is written while it refuses, so nothing else looks again.
            self.free_bytes = free_bytes(self._path)
        if self.free_bytes < self._reserve:
            raise OutboxFull(
                f"the disk has {self.free_bytes} bytes free, less than the "
                f"{self._reserve} kept in reserve",
                full=Full.DISK_RESERVE,
            )

    def take(self, device: str, size: int) -> None:
        """A spill is taken in."""
        self.quotas.take(device, size)
        self._refused_since_taken = 0

    def give_back(self, device: str, size: int) -> None:
        """A spill that was taken in is not kept."""
        self.quotas.give_back(device, size)

    def ended(self, device: str, size: int) -> None:
        """A spill has ended, and that is what room comes from."""
        self.give_back(device, size)
        self._drain.ended(self._now_s(), size)

    def _full(self, refusal: Refusal, device: str, size: int) -> OutboxFull:
        """What is refused, and when there may be room for it."""
        # Those who were refused before come first, or at the same time.
        self._refused_since_taken += 1
        rows = self._refused_since_taken
        share = 1.0
        if refusal.full in (Full.DEVICE_ROWS, Full.DEVICE_BYTES):
            rows = 1
            share = self.quotas.of(device).rows / max(1, self.quotas.total.rows)
        by_bytes = refusal.full in (Full.BYTES, Full.DEVICE_BYTES)
        retry_after_s = self._drain.retry_after_s(
            self._now_s(), rows=rows, size=size if by_bytes else 0, share=share
        )
        return OutboxFull(
            refusal.reason, full=refusal.full, retry_after_s=retry_after_s
        )


def free_bytes(path: Path) -> int:
    """Free bytes of the disk under a file; plenty where that cannot be asked."""
    with contextlib.suppress(OSError):
        disk = os.statvfs(path.parent)
        return disk.f_bavail * disk.f_frsize
    return PLENTY_BYTES
