"""What a disk may hold after a power cut: all that was synced, and any of the rest.

Pure but for `Remains.write_to`. Unsynced writes survive in 512-byte sectors, in any
order between files and within one; a name that was made or removed since its folder
was last synced may be there or not; bytes that no write reached are zeros or rubbish.
What is not modelled: storage that lies about fsync, and sectors that tear inside.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

from tests.faults.watched_disk import (
    Made,
    Mark,
    Removed,
    Step,
    Synced,
    Truncated,
    Wrote,
)

SECTOR: Final = 512

Survives: TypeAlias = Callable[[int, Wrote | Truncated, int], bool]
"""(position in the trace, the write, which sector of it) → whether it reached the disk."""


@dataclass(slots=True)
class _File:
    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, Wrote | Truncated]] = field(default_factory=list)

    def sync(self, before: int) -> None:
        for at, step in self.pending:
            if at < before:
                _apply(self.durable, step, lambda _: True, b"\0")
        self.pending = [each for each in self.pending if each[0] >= before]


@dataclass(frozen=True, slots=True)
class Remains:
    """One of the states in which the files may be found after the cut."""

    files: dict[str, bytes]

    def write_to(self, folder: Path) -> None:
        """Lay the files down; the folder exists and is empty."""
        for name, content in self.files.items():
            (folder / name).write_bytes(content)


class Disk:
    """Follows a trace, and can be cut at any step of it."""

    def __init__(self) -> None:
        self._at = 0
        # A name that is deleted and made again is another file.
        self._files: list[_File] = []
        self._names: dict[str, int] = {}
        self._durable_names: dict[str, int] = {}
        self._name_steps: list[tuple[str, int | None]] = []

    def follow(self, steps: Iterable[Step]) -> None:
        """Take further steps of the trace."""
        for step in steps:
            self._take(step)
            self._at += 1

    def _take(self, step: Step) -> None:
        match step:
            case Made(name):
                self._files.append(_File())
                self._names[name] = len(self._files) - 1
                self._name_steps.append((name, self._names[name]))
            case Wrote() | Truncated():
                self._file(step.file).pending.append((self._at, step))
            case Synced(name, before):
                self._file(name).sync(before)
                # SQLite syncs the folder after the first sync of a new log.
                if name.endswith(("-wal", "-journal")):
                    self._sync_folder()
            case Removed(name, sync):
                del self._names[name]
                self._name_steps.append((name, None))
                if sync:
                    self._sync_folder()
            case Mark():
                pass

    def _file(self, name: str) -> _File:
        return self._files[self._names[name]]

    def _sync_folder(self) -> None:
        self._durable_names = dict(self._names)
        self._name_steps = []

    def cut(self, rng: random.Random) -> Remains:
        """Pull the plug now; `rng` chooses which of what was not synced survived."""
        names = dict(self._durable_names)
        for name, number in self._name_steps[: rng.randint(0, len(self._name_steps))]:
            if number is None:
                names.pop(name, None)
            else:
                names[name] = number
        survives = self._choose(rng)
        hole = rng.choice((b"\0", b"\0", rng.randbytes(1)))
        return Remains(
            {
                name: self._content(self._files[number], survives, hole)
                for name, number in names.items()
            }
        )

    @staticmethod
    def _content(file: _File, survives: Survives, hole: bytes) -> bytes:
        content = bytearray(file.durable)
        for at, step in file.pending:
            _apply(content, step, lambda n, a=at, s=step: survives(a, s, n), hole)  # type: ignore[misc] # bound at once
        return bytes(content)

    def _choose(self, rng: random.Random) -> Survives:
        share = rng.random()
        last = rng.randint(0, self._at)
        lucky = rng.choice(list(self._names) or [""])
        choices: Sequence[Survives] = (
            lambda _at, _step, _n: False,
            lambda _at, _step, _n: True,
            lambda at, _step, _n: at <= last,
            lambda at, _step, _n: at > last,
            lambda _at, _step, _n: rng.random() < share,
            lambda at, _step, _n: random.Random(at * 1_000_003 + last).random() < share,
            lambda _at, step, _n: step.file == lucky,
            lambda _at, step, _n: step.file != lucky and rng.random() < share,
        )
        return rng.choice(choices)


def _apply(
    content: bytearray,
    step: Wrote | Truncated,
    survives: Callable[[int], bool],
    hole: bytes,
) -> None:
    if isinstance(step, Truncated):
        if survives(0):
            _resize(content, step.size, hole)
        return
    start = step.offset
    for number, at in enumerate(_sectors(start, len(step.data))):
        if survives(number):
            end = min(start + len(step.data), (at // SECTOR + 1) * SECTOR)
            if len(content) < end:
                _resize(content, end, hole)
            content[at:end] = step.data[at - start : end - start]


def _sectors(offset: int, size: int) -> list[int]:
    """Where each sector of a write begins, the first at the write itself."""
    first = (offset // SECTOR + 1) * SECTOR
    return [offset, *range(first, offset + size, SECTOR)]


def _resize(content: bytearray, size: int, hole: bytes) -> None:
    if size < len(content):
        del content[size:]
    else:
        content.extend(hole * (size - len(content)))
