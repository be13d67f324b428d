"""Set a damaged database aside and put another in its place. Nothing is deleted.

The damaged file gets a second name at once and keeps it. What replaces it is made
beside it and put in place only when it is whole, so that a crash in between costs
nothing. Rows are looked for one by one, by their number: a damaged page costs only
the rows on it. What is read may still be wrong, for SQLite keeps no checksum of a row.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Final

from bundle.durable import sync_folder

MOST_MISSES: Final = 20_000
"""Failures in a row after which nothing more is expected."""
STEP_AFTER: Final = 256
"""Failures in a row after which larger gaps are taken: it is more than one page."""

WAL_MAGIC: Final = (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")


def readable_rows(path: Path, columns: str) -> Generator[tuple[Any, ...]]:
    """Every row of `spill` that can be read, oldest first.

    Args:
        path: the damaged file; a log beside it is read too.
        columns: which of the table.
    """
    with _opened(path) as db:
        try:
            # Else SQLite refuses a file that is shorter than it says.
            db.execute("PRAGMA writable_schema = ON")
            db.execute("SELECT seq FROM spill LIMIT 0")
        except (sqlite3.Error, UnicodeDecodeError):
            return  # not even the names of the tables
        number, misses = -1, 0
        while misses < MOST_MISSES:
            try:
                row = db.execute(
                    f"SELECT seq, {columns} FROM spill NOT INDEXED "  # noqa: S608 - names of the caller's table
                    "WHERE seq > ? ORDER BY seq LIMIT 1",
                    (number,),
                ).fetchone()
            except (sqlite3.Error, UnicodeDecodeError):
                misses += 1
                # Whatever comes next lies behind the number that led to the damage.
                number += max(1, misses - STEP_AFTER)
                continue
            if row is None:
                return
            number, misses = max(number + 1, int(row[0])), 0
            yield row[1:]


def set_aside(path: Path, name: str) -> Path:
    """Give a database and its log a second name; gives the database's.

    Raises:
        OSError: the folder takes no further file.
    """
    aside = path.with_name(f"{path.name}.{name}")
    for suffix in ("", "-wal"):
        old = path.with_name(path.name + suffix)
        if old.exists():
            _second_name(old, aside.with_name(aside.name + suffix))
    return aside


def move_aside(path: Path, name: str) -> Path:
    """Give a file another name; gives that.

    Raises:
        OSError: the folder cannot be written.
    """
    aside = path.with_name(f"{path.name}.{name}")
    return path.rename(aside)


def _second_name(old: Path, new: Path) -> None:
    try:
        new.hardlink_to(old)
    except OSError:  # a file system that knows no links
        shutil.copyfile(old, new)


def in_the_making(path: Path) -> Path:
    """Where what replaces a database is made; what lay there before is gone."""
    part = path.with_name(f"{path.name}.part")
    for suffix in ("", "-wal", "-shm", "-journal"):
        part.with_name(part.name + suffix).unlink(missing_ok=True)
    return part


def put_in_place(path: Path, part: Path) -> None:
    """Replace a database that was set aside by one that is whole and closed."""
    part.replace(_ready(path))
    finish(path)


def finish(path: Path) -> None:
    """End a replacement that a crash interrupted, if there was one."""
    ready = _ready(path)
    if not ready.exists():
        return
    # The old log belongs to the old database, and would be taken for the new one's.
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    sync_folder(path.parent)
    ready.replace(path)
    sync_folder(path.parent)


def _ready(path: Path) -> Path:
    return path.with_name(f"{path.name}.salvaged")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """Read-only: the file is evidence, and nothing but the evidence stays."""
    sides = [path.with_name(path.name + suffix) for suffix in ("-wal", "-shm")]
    ours = [each for each in sides if not each.exists()]
    uri = f"{path.absolute().as_uri()}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=1.0)) as db:
            yield db
    finally:
        for each in ours:
            each.unlink(missing_ok=True)


def is_log(path: Path) -> bool:
    """Whether a log begins as one must, or is empty or missing.

    SQLite takes a log with another beginning for an empty one, without a word.
    """
    try:
        with path.open("rb") as file:
            return file.read(4) in (b"", *WAL_MAGIC)
    except FileNotFoundError:
        return True
