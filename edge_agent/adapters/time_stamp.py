"""Keep the agent's time across restarts in a small file, and read the machine's clocks."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Final

import structlog

from edge_agent.core.agent_time import (
    DamagedStamp,
    Moment,
    TimeStamp,
    read_stamp,
    write_stamp,
)
from lifecycle.clock import Clock

log = structlog.get_logger(__name__)

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
MAX_STAMP_BYTES: Final = 4096


class TimeStampFile:
    """The stamp of one agent.

    Args:
        path: where it is kept.
        boot_id: tells one boot of the machine from another; None: nothing does.
    """

    def __init__(self, path: Path, boot_id: str | None) -> None:
        self._path = path
        self._boot_id = boot_id
        self._writing = threading.Lock()

    def now(self, clock: Clock) -> Moment:
        """What the clocks say."""
        return Moment(self._boot_id, clock.boottime() * 1000.0, clock.wall_ms())

    def read(self) -> TimeStamp | None:
        """What an earlier process left; None, said in the log, when it is damaged."""
        try:
            with self._path.open("rb") as file:
                return read_stamp(file.read(MAX_STAMP_BYTES))
        except FileNotFoundError:
            return None
        except (OSError, DamagedStamp) as error:
            log.warning(
                "time_stamp_unreadable",
                path=str(self._path),
                error=str(error),
                instead="deadlines go on by the wall clock",
            )
            return None

    def write(self, stamp: TimeStamp) -> None:
        """Put a stamp in the place of the last.

        Not synced: a process that dies loses nothing by it, and after a power cut the
        stamp before is as good, some seconds older.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        part = self._path.with_name(f".{self._path.name}.part")
        with self._writing:
            part.write_bytes(write_stamp(stamp))
            part.replace(self._path)


def this_boot() -> str | None:
    """What Linux names this boot of the machine; None elsewhere."""
    try:
        return BOOT_ID.read_text().strip() or None
    except OSError:
        return None
