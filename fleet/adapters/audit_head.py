"""The audit log's newest entry, kept in a file that is not the database.

A log whose end was cut off, or an older copy that was put in its place, is whole in
itself; only a head from elsewhere shows it.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bundle.durable import write_file
from fleet.core.audit import Head

MAX_HEAD_BYTES: Final = 4096
POLL_S: Final = 0.005


class HeadUnreadable(Exception):
    """The file is there and holds no head; says which."""


class AuditHead:
    """A file with the head of the log.

    Args:
        path: the file; its folder must exist.
        timeout_s: how long to wait while another process keeps one.
    """

    def __init__(self, path: Path, *, timeout_s: float = 5.0) -> None:
        self.path = path
        self._timeout_s = timeout_s

    def read(self) -> Head | None:
        """The head that was kept; None when none was, or none can be read."""
        try:
            return self.read_strictly()
        except HeadUnreadable:
            return None

    def read_strictly(self) -> Head | None:
        """The head that was kept; None when none was.

        Raises:
            HeadUnreadable: the file cannot be read, or holds something else.
        """
        try:
            with self.path.open("rb") as file:
                said = json.loads(file.read(MAX_HEAD_BYTES))
            return Head(int(said["sequence"]), str(said["digest"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise HeadUnreadable(
                f"{self.path} holds no head of an audit log: was it changed?"
            ) from error

    def keep(self, head: Head) -> None:
        """Put a head in place of the one that was kept, unless that one is later.

        Heads are kept after the commit, when nothing orders the processes any more: the
        daemon may have committed and kept the next entry meanwhile.

        Raises:
            OSError: the file cannot be written, or another process holds it too long.
        """
        with self._alone():
            kept = self.read()
            if kept is not None and kept.sequence >= head.sequence:
                return
            said = {"sequence": head.sequence, "digest": head.digest}
            write_file(self.path, json.dumps(said).encode() + b"\n")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        # The folder, because the file is replaced at each keeping.
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            until_s = time.monotonic() + self._timeout_s
            while not _locked(folder):
                if time.monotonic() >= until_s:
                    raise TimeoutError(
                        f"another process holds {self.path.parent} for too long"
                    )
                time.sleep(POLL_S)
            yield
        finally:
            os.close(folder)  # Also unlocks.


def _locked(folder: int) -> bool:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
