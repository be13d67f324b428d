"""Keep what is watched of the models in a small file: read at the start, replaced rarely."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import structlog

from bundle.durable import write_file

log = structlog.get_logger(__name__)

# A watch is some 8 KB; whatever is larger was not written here.
MAX_BYTES: Final = 16 * 1024 * 1024
FORMAT: Final = 1


class WatchFile:
    """The books of one agent's promises.

    Args:
        path: where they are kept.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writing = threading.Lock()

    def read(self) -> dict[str, Any]:
        """What an earlier process left; nothing, said in the log, when it is damaged."""
        try:
            with self._path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
            return _checked(data)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            log.warning(
                "promises_unreadable",
                path=str(self._path),
                error=str(error),
                instead="promises and drift tests begin anew",
            )
            return {}

    def write(self, state: Mapping[str, Any]) -> None:
        """Put these books in the place of the last; synced, so seldom called.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        data = json.dumps({"format": FORMAT, **state}, allow_nan=False).encode()
        with self._writing:
            write_file(self._path, data, mode=0o600)


def _checked(data: bytes) -> dict[str, Any]:
    """The books in a file.

    Raises:
        ValueError: it holds something else.
    """
    stored = json.loads(data) if len(data) <= MAX_BYTES else None
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        raise ValueError("it is not the books of an agent")
    return stored
