"""What was pulled today, kept over restarts. Blocking, and small."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from edge_agent.core.pull_budget import DaySpent

MAX_FILE_BYTES: Final = 1024


class DayFile:
    """One file that holds a `DaySpent`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> DaySpent:
        """What it says; nothing spent if it is missing or damaged."""
        try:
            with self._path.open("rb") as file:
                kept = json.loads(file.read(MAX_FILE_BYTES))
            return DaySpent(max(0, int(kept["day"])), max(0, int(kept["spent_bytes"])))
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            return DaySpent()

    def save(self, spent: DaySpent) -> None:
        """Replace it. Not synced: a power cut forgets a few chunks, which is no harm.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        part = self._path.with_name(self._path.name + ".new")
        part.write_text(
            json.dumps({"day": spent.day, "spent_bytes": spent.spent_bytes})
        )
        part.replace(self._path)
