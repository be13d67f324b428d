"""The catalogue of examples in SQLite: a row a file. One writes at a time, any may read."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Final, Self

from cloud_worker.core.example_record import Example
from cloud_worker.core.examples import Agreement, Entry, Worth

BUSY_S: Final = 10.0
SCHEMA_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE example (
    model TEXT NOT NULL, digest TEXT NOT NULL, label TEXT, reason TEXT NOT NULL,
    size_bytes INTEGER NOT NULL, count INTEGER NOT NULL, at_ms INTEGER NOT NULL,
    agreement INTEGER NOT NULL, margin REAL NOT NULL, device TEXT NOT NULL,
    version TEXT NOT NULL, confidence REAL,
    edge_label TEXT, edge_confidence REAL, edge_version TEXT,
    PRIMARY KEY (model, digest)
) WITHOUT ROWID
"""


class CannotKeep(Exception):
    """The disk does not let examples be kept, or be read; says why."""


@dataclass(frozen=True, slots=True)
class Row:
    """What the index says of an example. Times are Unix milliseconds.

    The fields are columns; what they mean says `Example`.
    """

    model: str
    digest: str
    label: str | None
    reason: str
    size_bytes: int
    count: int
    at_ms: int
    agreement: int
    margin: float
    device: str
    version: str
    confidence: float | None
    edge_label: str | None
    edge_confidence: float | None
    edge_version: str | None

    @classmethod
    def of(cls, example: Example, entry: Entry) -> Self:
        """The row of an example."""
        edge, cloud = example.edge, example.cloud
        return cls(
            model=example.model,
            digest=entry.digest,
            label=cloud.label,
            reason=entry.reason,
            size_bytes=entry.size_bytes,
            count=entry.count,
            at_ms=example.at_ms,
            agreement=int(entry.worth.agreement),
            margin=example.margin,
            device=example.device,
            version=cloud.version,
            confidence=cloud.confidence,
            edge_label=None if edge is None else edge.label,
            edge_confidence=None if edge is None else edge.confidence,
            edge_version=None if edge is None else edge.version,
        )

    @property
    def entry(self) -> Entry:
        """As quotas see it."""
        agreement = Agreement(self.agreement)
        worth = Worth(agreement, self.margin, self.at_ms, self.digest)
        return Entry(self.label, self.reason, self.size_bytes, worth, self.count)


_COLUMNS: Final = ", ".join(each.name for each in fields(Row))
_PLACES: Final = ", ".join("?" for _ in fields(Row))
_SELECT: Final = f"SELECT {_COLUMNS} FROM example"  # noqa: S608 - constants
_INSERT: Final = f"INSERT OR REPLACE INTO example ({_COLUMNS}) VALUES ({_PLACES})"  # noqa: S608 - constants


@contextmanager
def telling() -> Iterator[None]:
    """Translate what a disk or SQLite says.

    Raises:
        CannotKeep: in one sentence.
    """
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise CannotKeep(f"{where}{error.strerror or error}") from error
    except sqlite3.Error as error:
        raise CannotKeep(f"the index of examples: {error}") from error


class Index:
    """An open index; what fails raises `sqlite3.Error`, which `telling` translates.

    Args:
        path: of the file.
        make: make it where there is none, and look through it: for its owner.

    Raises:
        sqlite3.OperationalError: the disk does not let it be opened.
        sqlite3.DatabaseError: it is damaged.
        CannotKeep: a program of another version made it.
    """

    def __init__(self, path: Path, *, make: bool = False) -> None:
        if make:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        # One thread at a time uses it, and not always the same one.
        self._db = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=rw",
            uri=True,
            timeout=BUSY_S,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            self._prepare(path, make=make)
        except BaseException:
            self._db.close()
            raise

    def _prepare(self, path: Path, *, make: bool) -> None:
        # No write-ahead log: its shared memory does not work on a shared folder.
        self._db.execute("PRAGMA synchronous = FULL")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0 and make:
            self._db.executescript(
                f"BEGIN; {_SCHEMA}; PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
            )
        elif version != SCHEMA_VERSION:
            raise CannotKeep(
                f"{path} has schema {version}, this program knows {SCHEMA_VERSION}"
            )
        if make:
            (said,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
            if said != "ok":
                raise sqlite3.DatabaseError(said)

    def close(self) -> None:
        """Let go of it."""
        self._db.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One change, synced at the end of the block or undone."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise

    def changes_of_others(self) -> int:
        """Another number once another process has changed it."""
        (number,) = self._db.execute("PRAGMA data_version").fetchone()
        return int(number)

    def rows(self, where: str = "", values: Sequence[object] = ()) -> Iterator[Row]:
        """Rows, the newest first; `where` is a condition, written by the caller."""
        condition = f" WHERE {where}" if where else ""
        statement = f"{_SELECT}{condition} ORDER BY at_ms DESC, digest"
        for row in self._db.execute(statement, tuple(values)):
            yield Row(*row)

    def put(self, row: Row) -> None:
        """Write a row, in the place of the one before."""
        self._db.execute(_INSERT, astuple(row))

    def count_again(self, model: str, digest: str, count: int) -> None:
        """The same inputs were answered so often now."""
        self._db.execute(
            "UPDATE example SET count = ? WHERE model = ? AND digest = ?",
            (count, model, digest),
        )

    def take_out(self, model: str, digest: str) -> None:
        """Forget a row."""
        self._db.execute(
            "DELETE FROM example WHERE model = ? AND digest = ?", (model, digest)
        )
