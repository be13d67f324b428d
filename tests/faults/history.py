"""Histories: what each process saw, one JSON object a line, whatever kills it.

A line is one `write` to a file that was opened to append, so a killed process tears
at most its last line, and that is left out when histories are read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self, TypeAlias

from lifecycle.clock import Clock, SystemClock

SUFFIX: Final = ".jsonl"
ROLL_BYTES: Final = 32 * 1024**2

Key: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that one process saw.

    Attributes:
        t: CLOCK_MONOTONIC in nanoseconds, the same for every process of a machine.
        who: `device:cam1`, `agent:agent-1`, `worker:w1` or `runner`.
        event: a `lifecycle.journal.Event`, or `offered` and `heard` of devices,
            `started` and `recovered` of agents, `fault` of the runner.
        device: whose request; empty where the line is about none.
        id: which request.
        detail: what else is to be known of it.
    """

    t: int
    who: str
    event: str
    device: str = ""
    id: str = ""
    detail: str = ""

    @property
    def key(self) -> Key:
        """The request, as agents and pool know it."""
        return (self.device, self.id)

    def pack(self) -> bytes:
        """The line as it stands in a file."""
        fields = {
            "t": self.t,
            "who": self.who,
            "event": self.event,
            "device": self.device,
            "id": self.id,
            "detail": self.detail,
        }
        return json.dumps(fields, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Read what `pack` wrote.

        Raises:
            ValueError: it is not a whole line.
        """
        try:
            return cls(**json.loads(data))
        except TypeError as error:
            raise ValueError(f"not a line of a history: {data[:80]!r}") from error


class History:
    """Writes what one process sees.

    Args:
        folder: of all histories of a run; it exists.
        who: whose words they are.
        clock: for the stamps.
    """

    def __init__(self, folder: Path, who: str, clock: Clock | None = None) -> None:
        self._folder = folder
        self._who = who
        self._clock = clock or SystemClock()
        self._number = 0
        self._size = 0
        self._file = self._open()

    def _open(self) -> int:
        name = f"{self._who.replace(':', '-')}.{os.getpid()}.{self._number}{SUFFIX}"
        return os.open(
            self._folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
        )

    def note(
        self, event: str, device: str = "", id_: str = "", detail: str = ""
    ) -> None:
        """Write one line; it is with the kernel when this returns."""
        at = round(self._clock.monotonic() * 1e9)
        line = Line(at, self._who, str(event), device, id_, detail).pack()
        self._size += os.write(self._file, line)
        if self._size > ROLL_BYTES:
            # So that a long run can delete what it has checked.
            os.close(self._file)
            self._number, self._size = self._number + 1, 0
            self._file = self._open()

    def close(self) -> None:
        """Nothing more is seen."""
        os.close(self._file)


def merged(lines: Iterable[Line]) -> list[Line]:
    """Lines of several processes in the order in which they were seen."""
    return sorted(lines, key=lambda line: line.t)


def read(folder: Path) -> list[Line]:
    """All that is in the histories of a folder, in order."""
    return Reader(folder).new()


@dataclass
class Reader:
    """Reads what was added since it last looked.

    Attributes:
        folder: the histories.
        tidy: delete files that are read and that their writer has left.
    """

    folder: Path
    tidy: bool = False
    _read: dict[Path, int] = field(default_factory=dict)

    def new(self) -> list[Line]:
        """Lines that were not read before, in order; torn ones are left for later."""
        found: list[Line] = []
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            left = _is_left(path)  # asked first: then no line comes after
            found += self._rest_of(path)
            if self.tidy and left:
                path.unlink()
                self._read.pop(path, None)
        return merged(found)

    def _rest_of(self, path: Path) -> Iterator[Line]:
        with path.open("rb") as file:
            file.seek(self._read.get(path, 0))
            for data in file:
                if not data.endswith(b"\n"):
                    return
                self._read[path] = self._read.get(path, 0) + len(data)
                yield Line.unpack(data)


def _is_left(path: Path) -> bool:
    """Whether its writer has gone on to another file, or is gone itself."""
    stem, number, _ = path.name.rsplit(".", 2)
    if path.with_name(f"{stem}.{int(number) + 1}{SUFFIX}").exists():
        return True
    try:
        os.kill(int(stem.rpartition(".")[2]), 0)
    except ProcessLookupError:
        return True
    return False
