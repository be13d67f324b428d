"""What the machine is, as its system says it: facts for the fleet and for bundles."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from bundle.trust.moment import RELEASED_S
from edge_agent.core.fit import Device

_MEGABYTE: Final = 1024 * 1024
_RUNTIMES: Final = (("litert", "ai-edge-litert"), ("tflite", "tflite-runtime"))


class Machine:
    """The machine that the agent runs on.

    Args:
        folder: on the disk whose free room counts.
        board: as the agent is configured.
        utc_offset_min: of the device's own time; None: as the system says.
        wall_s: the system's clock, Unix time.
        pool_s: the pool's clock as far as it was learned, Unix time; None when not.
    """

    def __init__(
        self,
        folder: Path,
        *,
        board: str | None,
        utc_offset_min: int | None,
        wall_s: Callable[[], float],
        pool_s: Callable[[], float | None],
    ) -> None:
        self._folder = folder
        self._utc_offset_min = utc_offset_min
        self._wall_s = wall_s
        self._pool_s = pool_s
        self._runtime = _runtime()
        self._os = _os()
        self.device = Device(
            machine=platform.machine(),
            board=board,
            runtime=self._runtime[0],
            memory_mb=_memory_mb(),
        )

    @property
    def clock_is_set(self) -> bool:
        """Whether the system's clock can be right: it is not before this was made."""
        return self._wall_s() >= RELEASED_S

    @property
    def utc_offset_min(self) -> int:
        """Added to UTC it gives the device's own time."""
        if self._utc_offset_min is not None:
            return self._utc_offset_min
        return time.localtime(max(self._wall_s(), RELEASED_S)).tm_gmtoff // 60

    def local_now(self) -> datetime | None:
        """The device's own time; None when neither its clock nor the pool told it.

        The pool's time is preferred: a clock that is set may be set wrong.
        """
        now_s = self._pool_s()
        if now_s is None or now_s < RELEASED_S:
            now_s = self._wall_s() if self.clock_is_set else None
        if now_s is None:
            return None
        zone = timezone(timedelta(minutes=self.utc_offset_min))
        return datetime.fromtimestamp(now_s, zone)

    def local_now_s(self) -> float:
        """The device's own time as seconds, for what begins anew each day."""
        now = self.local_now()
        now_s = self._wall_s() if now is None else now.timestamp()
        return now_s + self.utc_offset_min * 60.0

    def facts(self) -> dict[str, str]:
        """What the fleet is told, all of it text."""
        device = self.device
        facts = {
            "machine": device.machine,
            "board": device.board or "",
            "os": self._os,
            "python": platform.python_version(),
            "runtime": device.runtime or "",
            "runtime_version": self._runtime[1],
            "memory_mb": str(device.memory_mb),
            "free_disk_mb": str(shutil.disk_usage(self._folder).free // _MEGABYTE),
            "utc_offset_min": str(self.utc_offset_min),
            "clock": "ok" if self.clock_is_set else "floor",
        }
        return {name: value for name, value in facts.items() if value}


def _runtime() -> tuple[str | None, str]:
    for name, package in _RUNTIMES:
        try:
            return name, version(package)
        except PackageNotFoundError:
            continue
    return None, ""


def _os() -> str:
    try:
        found = platform.freedesktop_os_release()
    except OSError:
        return platform.system().lower()
    return f"{found.get('ID', 'linux')}-{found.get('VERSION_ID', '')}".rstrip("-")


def _memory_mb() -> int:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        limit = "max"
    return min(pages, int(limit) if limit.isdigit() else pages) // _MEGABYTE
