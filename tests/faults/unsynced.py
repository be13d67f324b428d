"""What a disk may hold after a power cut: all that was synced, and any of the rest.

Pure but for `Remains.write_to`. Unsynced writes survive in 512-byte sectors, in any
order between files and within one; a name that was made or removed since its folder
was last synced may be there or not; what a failed sync covered stays in doubt whatever
later syncs say, as on Linux; bytes that no write reached are zeros or rubbish.
What is not modelled: storage that lies about fsync, and sectors that tear inside.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Final, TypeAlias

from tests.faults.watched_disk import (
    Made,
    Mark,
    Removed,
    Step,
    Synced,
    SyncFailed,
    Truncated,
    Wrote,
)

SECTOR: Final = 512

Survives: TypeAlias = Callable[[int, Wrote | Truncated, int], bool]
"""(position in the trace, the write, which sector of it) → whether it reached the disk."""


class _Fate(Enum):
    OPEN = auto()
    """May or may not be on the disk; the next sync decides."""
    DOUBTFUL = auto()
    """A sync of it failed, and no later sync will try again."""
    KEPT = auto()
    """On the disk."""


@dataclass(slots=True)
class _Write:
    at: int
    step: Wrote | Truncated
    fate: _Fate = _Fate.OPEN


@dataclass(slots=True)
class _File:
    """What is on the disk for certain, and the writes since, in order."""

    durable: bytearray = field(default_factory=bytearray)
    writes: list[_Write] = field(default_factory=list)

    def decide(self, before: int, fate: _Fate) -> None:
        for each in self.writes:
            if each.at < before and each.fate is _Fate.OPEN:
                each.fate = fate
        kept = list(itertools.takewhile(lambda w: w.fate is _Fate.KEPT, self.writes))
        for each in kept:
            _apply(self.durable, each.step, lambda _: True, b"\0")
        del self.writes[: len(kept)]


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
            case Made() | Removed():
                self._rename(step)
            case Wrote() | Truncated():
                self._file(step.file).writes.append(_Write(self._at, step))
            case SyncFailed(name, before):
                self._file(name).decide(before, _Fate.DOUBTFUL)
            case Synced(name, before):
                self._file(name).decide(before, _Fate.KEPT)
                # SQLite syncs the folder after the first sync of a new log.
                if name.endswith(("-wal", "-journal")):
                    self._sync_folder()
            case Mark():
                pass

    def _rename(self, step: Made | Removed) -> None:
        if isinstance(step, Made):
            self._files.append(_File())
            self._names[step.file] = len(self._files) - 1
        else:
            del self._names[step.file]
        self._name_steps.append((step.file, self._names.get(step.file)))
        if isinstance(step, Removed) and step.sync:
            self._sync_folder()

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
        for each in file.writes:
            kept = each.fate is _Fate.KEPT
            choice = functools.partial(survives, each.at, each.step)
            _apply(content, each.step, (lambda _: True) if kept else choice, hole)
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
