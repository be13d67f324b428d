"""The audit log's newest entry, kept in a file that is not the database.

A log whose end was cut off, or an older copy that was put in its place, is whole in
itself; only a head from elsewhere shows it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from bundle.durable import write_file
from fleet.core.audit import Head

MAX_HEAD_BYTES: Final = 4096


class HeadUnreadable(Exception):
    """The file is there and holds no head; says which."""


class AuditHead:
    """A file with the head of the log.

    Args:
        path: the file; its folder must exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

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
        """Replace the head that was kept.

        Raises:
            OSError: the file cannot be written.
        """
        said = {"sequence": head.sequence, "digest": head.digest}
        write_file(self.path, json.dumps(said).encode() + b"\n")
