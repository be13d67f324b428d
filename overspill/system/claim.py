"""A folder is one system's at a time, and what a killed one left running there is ended."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Final

from broker.process import birth_of, end
from overspill.program import Program
from overspill.system.preflight import CannotStart

PROCESSES_FILE: Final = "processes.json"


class Claim:
    """One system's hold on its folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock: IO[str] | None = None

    def take(self) -> None:
        """Keep others out.

        Raises:
            CannotStart: a system runs there.
        """
        lock = (self._folder / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise CannotStart(
                f"a system already runs in {self._folder}: stop it with Ctrl-C, or "
                "choose another folder with --folder"
            ) from None
        self._lock = lock

    async def end_leftovers(self) -> None:
        """End what an earlier system left here when it was killed."""
        with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
            left = json.loads(self._processes.read_text())
            await end({each["pid"]: each["birth"] for each in left if each["birth"]}, 0)

    def note(self, programs: Iterable[Program]) -> None:
        """Write down what runs, for whoever comes after a kill."""
        processes = [
            {"name": each.name, "pid": each.pid, "birth": birth_of(each.pid)}
            for each in programs
            if each.pid is not None
        ]
        new = self._processes.with_suffix(".new")
        new.write_text(json.dumps(processes))
        new.replace(self._processes)

    def release(self) -> None:
        """Nothing runs any more: another may have the folder."""
        self._processes.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def _processes(self) -> Path:
        return self._folder / PROCESSES_FILE
