"""One worker's part of the folder of examples: files, and the index that lists them.

    part-1/lock            who holds it (flock)
    part-1/index.db        see example_index.py
    part-1/models/NAME/ab/ab12….example
    part-1/models/NAME/about-VERSION.json

The files are what is kept, each whole by itself; the index is made again from them
when it is damaged.
"""

from __future__ import annotations

import fcntl
import os
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from bundle.durable import write_file
from cloud_worker.adapters.example_index import Index, Row
from cloud_worker.core.example_record import (
    MAX_RECORD_BYTES,
    Example,
    Unreadable,
    entry_of,
    read_record,
)

PART: Final = re.compile(r"part-(\d{1,4})\Z")
INDEX: Final = "index.db"
SUFFIX: Final = ".example"


class Part:
    """The files of one part. Its lock is its owner's affair.

    Args:
        folder: of the part.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def lock(self) -> int | None:
        """Become its owner until the descriptor is closed; None: another is.

        Raises:
            OSError: the disk does not let it.
        """
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        lock = os.open(self.folder / "lock", flags, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        except BaseException:
            os.close(lock)
            raise
        return lock

    def open(self) -> Index:
        """Open the index that is there, to read it or to purge.

        Raises:
            sqlite3.Error, CannotKeep: see `Index`.
        """
        return Index(self.folder / INDEX)

    def own(self) -> Index:
        """Open the index as its owner: one that is missing or damaged is made anew.

        Raises:
            OSError, sqlite3.Error, CannotKeep: the disk does not let it.
        """
        path = self.folder / INDEX
        try:
            return Index(path, make=True)
        except sqlite3.DatabaseError as error:
            # Its subclass means that the disk is at fault, or that another holds it.
            if isinstance(error, sqlite3.OperationalError):
                raise
            path.replace(path.with_name(f"{INDEX}.damaged"))
            return Index(path, make=True)

    def of_model(self, model: str) -> Path:
        """The folder of a model's examples."""
        return self.folder / "models" / model

    def about(self, model: str, version: str) -> Path:
        """Where it is said how a version is fed and what its classes are."""
        return self.of_model(model) / f"about-{version}.json"

    def path(self, model: str, digest: str) -> Path:
        """Where the file of an example is."""
        return self.of_model(model) / digest[:2] / f"{digest}{SUFFIX}"

    def write(self, model: str, digest: str, data: bytes) -> None:
        """Write a file, whole and synced or not at all.

        Raises:
            OSError: the disk does not let it.
        """
        path = self.path(model, digest)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Devices' own data: for this user's eyes only.
        write_file(path, data, mode=0o600)

    def read(self, model: str, digest: str) -> Example:
        """Read a file.

        Raises:
            OSError: it is gone, or the disk is.
            Unreadable: it is damaged.
        """
        with self.path(model, digest).open("rb") as file:
            data = file.read(MAX_RECORD_BYTES + 1)
        if len(data) > MAX_RECORD_BYTES:
            raise Unreadable(f"it has over {MAX_RECORD_BYTES} bytes")
        return read_record(data, digest)

    def delete(self, model: str, digest: str) -> None:
        """Delete a file, if it is there.

        Raises:
            OSError: the disk does not let it.
        """
        self.path(model, digest).unlink(missing_ok=True)

    def mend(self, index: Index) -> tuple[int, int]:
        """Make index and files agree after a crash; the owner's to do.

        Returns:
            How many rows were taken out for want of their file, and how many files
            were taken in that no row spoke of.

        Raises:
            OSError, sqlite3.Error: the disk does not let it.
        """
        files = set(self._files())
        rows = {(each.model, each.digest) for each in index.rows()}
        lost, found = rows - files, 0
        with index.writing():
            for model, digest in lost:
                index.take_out(model, digest)
            for model, digest in files - rows:
                found += self._take_in(index, model, digest)
        return len(lost), found

    def _take_in(self, index: Index, model: str, digest: str) -> bool:
        path = self.path(model, digest)
        try:
            example = self.read(model, digest)
        except Unreadable:
            path.unlink()
            return False
        entry = entry_of(example, digest, path.stat().st_size)
        # Where it lies counts: somebody may have renamed the folder of a model.
        index.put(replace(Row.of(example, entry), model=model))
        return True

    def _files(self) -> Iterator[tuple[str, str]]:
        for path in (self.folder / "models").glob("*/*/*"):
            if path.suffix == SUFFIX and not path.name.startswith("."):
                yield path.parent.parent.name, path.stem
            else:
                # Half a file, of a process that was killed.
                path.unlink(missing_ok=True)


def parts_of(root: Path) -> list[Part]:
    """Every part in a folder that has an index, in order.

    Raises:
        OSError: the folder cannot be read.
    """
    names = [each.name for each in root.iterdir() if (each / INDEX).is_file()]
    numbered = [(int(found[1]), name) for name in names if (found := PART.match(name))]
    return [Part(root / name) for _, name in sorted(numbered)]
