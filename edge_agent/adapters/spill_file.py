"""The outbox's file, opened: made, brought up to date, or set aside and salvaged.

A file that is damaged is never deleted. What can be read of it goes on in a new one.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import structlog

from broker.messages import Priority, Reason
from broker.topics import check_id
from edge_agent.adapters import salvage
from edge_agent.adapters.spill_log import long_log_bytes
from edge_agent.adapters.spill_rows import (
    Ended,
    RowDamaged,
    check_seal,
    closed_spill,
    read_spill,
    seal_of_answer,
)
from edge_agent.adapters.spill_schema import COLUMNS, FROM_1, SCHEMA, SCHEMA_VERSION
from edge_agent.adapters.spill_table import SpillTable, connect_to_read
from edge_agent.core.answers import Answer
from edge_agent.core.delivery import Channel, Outcome, Spill, Stage, Why
from edge_agent.core.payload import Encoding, render

log = structlog.get_logger(__name__)

# A row does not say why it ended; the ledger of a damaged file is not to be trusted.
_LIKELY: Final = {
    Outcome.ANSWERED: Why.CLOUD,
    Outcome.FAILED: Why.POOL_FAILED,
    Outcome.EXPIRED: Why.DEADLINE,
}
# What SQLite's check says of a page that it could not get.
_UNREAD: Final = re.compile(r"error code=(\d+)")
_DAMAGED: Final = "its record was damaged on the agent's disk"


class OutboxUnusable(Exception):
    """The outbox cannot be opened at all, before somebody mends what is named."""


class OutboxFailed(Exception):
    """The file could not be read or written just now; try again later."""


def open_table(path: Path, damage: str | None = None) -> SpillTable:
    """Open the file, or make it; a corrupt one is set aside, never deleted.

    Args:
        path: of the file.
        damage: what is known to be wrong with it; None: to be looked for.

    Raises:
        OutboxUnusable: nothing can be opened there, or it is of another version.
        OutboxFailed: the disk is full or broken.
    """
    try:
        _check_place(path)
        salvage.finish(path)
        return SpillTable(_open(path, damage), path)
    except (sqlite3.OperationalError, OSError) as error:
        raise OutboxFailed(
            f"cannot open the outbox {path}: {error}; "
            "check that its disk has space and works"
        ) from error


def is_damage(error: Exception) -> bool:
    """Whether an error says that the file is damaged, and not that the disk fails."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return isinstance(error, RowDamaged) or code in (
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
    )


def _check_place(path: Path) -> None:
    """Find what no mended disk would change.

    Raises:
        OutboxUnusable: no file can be there.
        OSError: the disk does not say.
    """
    folder = path.parent
    wrong = None
    if path.is_dir():
        wrong = "it is a folder"
    elif not folder.is_dir():
        wrong = "its folder does not exist"
    elif not (os.access(folder, os.W_OK) or _is_read_only(folder)):
        wrong = "its folder may not be written by this user"
    if wrong is not None:
        raise OutboxUnusable(f"cannot open the outbox {path}: {wrong}")


def _is_read_only(folder: Path) -> bool:
    """Whether all of the disk is, as Linux makes it after an error."""
    return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)


def _open(path: Path, damage: str | None) -> sqlite3.Connection:
    """Open the file, setting a corrupt one aside: reported, never deleted."""
    name = f"corrupt-{os.getpid()}-{time.time_ns()}"
    log_path = path.with_name(f"{path.name}-wal")
    if not salvage.is_log(log_path):
        # SQLite would take it for an empty one, and write over it without a word.
        moved = salvage.move_aside(log_path, name)
        log.error("outbox_log_corrupt", set_aside=str(moved))
    try:
        return _connect_sound(path, damage)
    # SQLite's own message may hold bytes of the damage, which are no text.
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        if isinstance(error, sqlite3.OperationalError):
            raise
        aside = salvage.set_aside(path, name)
        log.error("outbox_corrupt", error=str(error), set_aside=str(aside))
        _replace(path, aside)
        return _connect(path)


def _connect_sound(path: Path, damage: str | None) -> sqlite3.Connection:
    if damage is not None:
        raise sqlite3.DatabaseError(damage)
    checked = path.exists() and _reads_well(path)
    db = _connect(path)
    try:
        if not checked:
            _check_pages(db)
    except BaseException:  # raised again: a file that is set aside may not be open
        db.close()
        raise
    return db


def _reads_well(path: Path) -> bool:
    """Check the pages by reading only; False where only writing can tell.

    A connection that may write moves the log into the file when it closes, and a
    damaged file would not stay as it was found.

    Raises:
        sqlite3.DatabaseError: a page is damaged, or cannot be read.
    """
    try:
        with contextlib.closing(connect_to_read(path)) as db:
            _check_pages(db)
    except sqlite3.OperationalError as error:
        # What a crash left half written must be undone first.
        code = getattr(error, "sqlite_errorcode", 0)
        if code & 0xFF != sqlite3.SQLITE_READONLY:
            raise
        return False
    return True


def _replace(path: Path, damaged: Path) -> None:
    """Put a new file in the place of a damaged one, with what can be read of that."""
    part = salvage.in_the_making(path)
    table = SpillTable(_connect(part), part)
    try:
        with table.transaction("FULL"):
            taken = _take_over(table, damaged)
    finally:
        table.close()
    salvage.put_in_place(path, part)
    log.error("outbox_salvaged", rows=taken, set_aside=str(damaged))


def _check_pages(db: sqlite3.Connection) -> None:
    """Find damage now, where the file can be set aside, and not row by row later.

    Raises:
        sqlite3.DatabaseError: a page is damaged.
        sqlite3.OperationalError: a page cannot be read, and so not judged.
    """
    (said,) = db.execute("PRAGMA quick_check(1)").fetchone()
    unread = _UNREAD.search(said)
    if unread is not None and int(unread[1]) & 0xFF == sqlite3.SQLITE_IOERR:
        raise sqlite3.OperationalError(said)
    if said != "ok":
        raise sqlite3.DatabaseError(said)


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, timeout=10.0
    )
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA wal_autocheckpoint = 0")
        # A log that has moved begins anew at its start, and no longer than this.
        db.execute(f"PRAGMA journal_size_limit = {long_log_bytes(path)}")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        script = {0: SCHEMA, 1: FROM_1}.get(version)
        if script is not None:
            db.execute("PRAGMA synchronous = FULL")
            db.executescript(
                f"BEGIN; {script} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
            )
            version = SCHEMA_VERSION
    except BaseException:  # raised again: nobody else could close it
        db.close()
        raise
    if version != SCHEMA_VERSION:
        db.close()
        raise OutboxUnusable(
            f"the outbox {path} has schema {version}, this agent knows "
            f"{SCHEMA_VERSION}; start the version that made it, or move it away"
        )
    return db


def _take_over(table: SpillTable, damaged: Path) -> int:
    """Add every row that can be read of another file; gives how many."""
    taken = 0
    columns = f"{COLUMNS}, stage, outcome, answer, ended_ms"
    with contextlib.closing(salvage.readable_rows(damaged, columns)) as rows:
        for row in rows:
            try:
                taken += _take_over_row(table, row)
            except sqlite3.OperationalError:
                raise  # the new file's own disk
            except Exception as error:  # noqa: BLE001 - such a row may hold anything
                log.error("row_not_salvaged", row=str(row[:2]), error=str(error))
    return taken


def _take_over_row(table: SpillTable, row: Sequence[Any]) -> bool:
    try:
        ended = _ended(row)
        spill = read_spill(row) if ended is None else closed_spill(row)
    except (ValueError, TypeError, KeyError, RowDamaged) as error:
        # Whoever waits for it hears that no answer will come.
        log.error("row_damaged", row=str(row[:2]), error=str(error))
        spill, ended = _given_up(row)
    if ended is None:
        return table.insert(spill)
    return table.insert_ended(spill, ended) is None


def _ended(row: Sequence[Any]) -> Ended | None:
    """What a row of `COLUMNS`, stage, outcome, answer, ended_ms has come to."""
    stage, outcome, answer, ended_ms = row[-4:]
    if stage == Stage.OPEN:
        return None
    how = Outcome(outcome)
    key = (row[0], row[1])
    check_seal(key, row[13], seal_of_answer(key, outcome, bytes(answer)))
    return Ended(key, how, _LIKELY[how], bytes(answer), ended_ms, Stage(stage))


def _given_up(row: Sequence[Any]) -> tuple[Spill, Ended]:
    """What is recorded for a row that is damaged, if it says for whom.

    Raises:
        ValueError, TypeError, KeyError: it does not, or nobody waits for it any more.
    """
    device, id_ = check_id("device", row[0]), check_id("request", row[1])
    if row[-4] not in (Stage.OPEN, Stage.SETTLED):
        raise ValueError("whoever it was for has been told")
    model = row[2] if isinstance(row[2], str) else ""
    encoding = row[6] if row[6] in set(Encoding) else Encoding.JSON.value
    called = row[5] == Channel.CALL.value
    now_ms = time.time_ns() / 1e6
    spill = Spill(
        device=device,
        id=id_,
        model=model,
        priority=Priority.NORM,
        reason=Reason(row[4]) if row[4] in set(Reason) else Reason.HARD,
        channel=Channel.CALL if called else Channel.MQTT,
        encoding=encoding,
        request=b"",
        accepted_ms=now_ms,
        deadline_ms=now_ms,
        due_ms=now_ms,
    )
    answer = Answer.failed(id_, device, model, reason=_DAMAGED, ms=0.0)
    stage = Stage.TOLD if called else Stage.SETTLED
    told = render(answer, Encoding(encoding))
    return spill, Ended(spill.key, Outcome.FAILED, Why.DAMAGED, told, now_ms, stage)
