"""All parts of a folder of examples, for whoever looks at them, exports or purges.

Beside running workers or without them. A purge deletes a file before its row, so that
one which is interrupted never leaves what it was told to delete.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from cloud_worker.adapters.example_index import CannotKeep, Index, Row, telling
from cloud_worker.adapters.example_part import Part, parts_of
from cloud_worker.adapters.example_store import DEVICE_KEY, device_key
from cloud_worker.core.example_record import Example, hashed_device
from cloud_worker.core.examples import Agreement

PURGED_TOGETHER: Final = 256
MAX_ABOUT_BYTES: Final = 4 * 1024**2


class NoExamples(Exception):
    """There is no folder of examples, or nothing in it that was asked for."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which examples are meant; None and False choose all.

    Attributes:
        model: its name.
        label: the cloud's.
        reason: why they were spilled.
        device: `AGENT/DEVICE`, as it was before it was hashed.
        before_ms: kept before this Unix time.
        disagreed: only those where the edge said something else.
    """

    model: str | None = None
    label: str | None = None
    reason: str | None = None
    device: str | None = None
    before_ms: int | None = None
    disagreed: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """An example, and where it lies."""

    part: Part
    row: Row

    def read(self) -> Example:
        """Its file.

        Raises:
            OSError: it is gone, or the disk is.
            Unreadable: it is damaged.
        """
        return self.part.read(self.row.model, self.row.digest)

    def about(self) -> dict[str, Any]:
        """How its model was fed and what its classes are; empty where nobody said."""
        path = self.part.about(self.row.model, self.row.version)
        try:
            with path.open("rb") as file:
                found = json.loads(file.read(MAX_ABOUT_BYTES))
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


class ExampleView:
    """The examples of all workers that share a folder.

    Args:
        root: the folder, `OVERSPILL_WORKER_EXAMPLES`.

    Raises:
        NoExamples: on entering: there is no such folder, or nothing was kept in it.
        CannotKeep: on entering: the disk does not let it be read.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._stack = ExitStack()
        self._open: list[tuple[Part, Index]] = []

    def __enter__(self) -> Self:
        try:
            with telling():
                for part in parts_of(self._root) if self._root.is_dir() else []:
                    index = part.open()
                    self._stack.callback(index.close)
                    self._open.append((part, index))
        except BaseException:
            self._stack.close()
            raise
        if not self._open:
            raise NoExamples(
                f"no examples are kept in {self._root}: workers keep them where "
                "OVERSPILL_WORKER_EXAMPLES says, of models whose model.json has "
                '"capture": true'
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def find(self, wanted: Filter) -> list[Found]:
        """The chosen ones of all parts, the newest first.

        Raises:
            NoExamples: a device is named, and nothing was hashed here.
            CannotKeep: the disk does not let it be read.
        """
        where, values = self._condition(wanted)
        return self._sorted(where, values)

    def named(self, digest: str) -> list[Found]:
        """Those whose digest begins so: one a part that keeps it.

        Raises:
            NoExamples: none does, or several different ones do.
            CannotKeep: the disk does not let it be read.
        """
        found = self._sorted("substr(digest, 1, ?) = ?", [len(digest), digest.lower()])
        different = {each.row.digest for each in found}
        if len(different) != 1:
            many = f"{len(different)} examples begin" if different else "none begins"
            raise NoExamples(f"{many} with {digest!r}: see `overspill examples list`")
        return found

    def tidy(self) -> None:
        """Take in what a killed worker has left without a row, before a purge.

        Else such a file would come back with the next worker. A part that a worker
        holds was tidied when it took it.

        Raises:
            CannotKeep: the disk does not let it.
        """
        for part, index in self._open:
            with telling():
                lock = part.lock()
                if lock is None:
                    continue
                try:
                    part.mend(index)
                finally:
                    os.close(lock)

    def purge(self, found: Iterable[Found]) -> Iterator[Row]:
        """Delete these for good; gives each once it is gone.

        Raises:
            CannotKeep: the disk does not let it.
        """
        by_part: dict[Path, list[Row]] = {}
        for each in found:
            by_part.setdefault(each.part.folder, []).append(each.row)
        for part, index in self._open:
            rows = by_part.get(part.folder, [])
            # A few at a time: the worker of this part waits meanwhile.
            for first in range(0, len(rows), PURGED_TOGETHER):
                some = rows[first : first + PURGED_TOGETHER]
                with telling(), index.writing():
                    for row in some:
                        part.delete(row.model, row.digest)
                        index.take_out(row.model, row.digest)
                yield from some

    def _sorted(self, where: str, values: list[object]) -> list[Found]:
        with telling():
            found = [
                Found(part, row)
                for part, index in self._open
                for row in index.rows(where, values)
            ]
        return sorted(found, key=lambda each: each.row.at_ms, reverse=True)

    def _condition(self, wanted: Filter) -> tuple[str, list[object]]:
        device = wanted.device
        said: list[tuple[str, object]] = [
            ("model = ?", wanted.model),
            ("label = ?", wanted.label),
            ("reason = ?", wanted.reason),
            ("device = ?", None if device is None else self._hashed(device)),
            ("at_ms < ?", wanted.before_ms),
            ("agreement = ?", Agreement.DISAGREED if wanted.disagreed else None),
        ]
        chosen = [(test, value) for test, value in said if value is not None]
        return " AND ".join(test for test, _ in chosen), [value for _, value in chosen]

    def _hashed(self, device: str) -> str:
        agent, _, name = device.partition("/")
        if not agent or not name:
            raise NoExamples(f"a device is AGENT/DEVICE, got {device!r}")
        if not (self._root / DEVICE_KEY).is_file():
            raise CannotKeep(
                f"{self._root / DEVICE_KEY} is gone: purge by model or age"
            )
        with telling():
            return hashed_device(device_key(self._root), agent, name)
