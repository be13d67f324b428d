"""The outbox's table and its ledger: every statement that changes them.

A row's stage changes only as `core.delivery.NEXT` says. What a transaction takes in and
ends is counted in the ledger by the same transaction. Blocking, and confined to one
thread; `adapters.outbox` gives it one.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import sqlite3
import struct
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, Self

import structlog

from broker.messages import Priority, Reason
from broker.topics import check_id
from edge_agent.adapters import salvage
from edge_agent.core.answers import Answer
from edge_agent.core.delivery import (
    Channel,
    Key,
    Outcome,
    Spill,
    Stage,
    Step,
    Why,
    after_step,
)
from edge_agent.core.ledger import Ledger
from edge_agent.core.payload import Encoding, render
from edge_agent.core.quotas import Held
from edge_agent.core.records import pack_answer, unpack_answer

log = structlog.get_logger(__name__)

SCHEMA_VERSION: Final = 2
_TABLE: Final = """
CREATE TABLE spill (
  seq INTEGER PRIMARY KEY,
  device TEXT NOT NULL,
  id TEXT NOT NULL,
  model TEXT NOT NULL,
  priority INTEGER NOT NULL,
  reason TEXT NOT NULL,
  channel TEXT NOT NULL,
  encoding TEXT NOT NULL,
  request BLOB,
  edge BLOB,
  accepted_ms REAL NOT NULL,
  deadline_ms REAL NOT NULL,
  due_ms REAL NOT NULL,
  attempt INTEGER NOT NULL,
  stage INTEGER NOT NULL,
  outcome TEXT,
  answer BLOB,
  ended_ms REAL,
  closed_ms REAL,
  ready INTEGER NOT NULL DEFAULT 0,
  seal INTEGER,
  UNIQUE (device, id)
) STRICT;
"""
# An open row is either ready to be sent, in order of its deadline, or waits for
# due_ms: so neither a deep backlog nor many sent rows are ever read through.
_INDEXES: Final = """
CREATE INDEX ready_by_deadline ON spill (priority, deadline_ms)
  WHERE stage = 0 AND ready = 1;
CREATE INDEX waiting_by_due ON spill (due_ms) WHERE stage = 0 AND ready = 0;
CREATE INDEX open_by_deadline ON spill (deadline_ms) WHERE stage = 0;
CREATE INDEX untold_by_end ON spill (ended_ms) WHERE stage = 1;
CREATE INDEX closed_by_time ON spill (closed_ms) WHERE stage >= 2;
CREATE TABLE ledger (
  entry TEXT NOT NULL,
  what TEXT NOT NULL,
  why TEXT NOT NULL,
  count INTEGER NOT NULL,
  PRIMARY KEY (entry, what, why)
) STRICT;
"""
SCHEMA: Final = _TABLE + _INDEXES
# How schema 1, which counted outcomes only, becomes this one.
FROM_1: Final = f"""
ALTER TABLE spill ADD COLUMN closed_ms REAL;
ALTER TABLE spill ADD COLUMN ready INTEGER NOT NULL DEFAULT 0;
ALTER TABLE spill ADD COLUMN seal INTEGER;
UPDATE spill SET closed_ms = ended_ms WHERE stage = 2;
UPDATE spill SET ready = 1 WHERE stage = 0 AND attempt = 0;
DROP INDEX open_by_due;
DROP INDEX open_by_deadline;
DROP INDEX untold;
DROP INDEX told_by_end;
{_INDEXES}
INSERT INTO ledger SELECT 'ended', outcome, 'unknown', count FROM tally;
INSERT INTO ledger SELECT 'accepted', reason, '', count(*) FROM spill GROUP BY reason;
INSERT INTO ledger
  SELECT 'accepted', 'unknown', '',
    (SELECT sum(count) FROM tally) - count(*) FROM spill WHERE stage > 0;
DROP TABLE tally;
"""

ACCEPTED: Final = "accepted"
ENDED: Final = "ended"
UNDELIVERED: Final = "undelivered"
PROMOTED_ROWS: Final = 2048

RANKS: Final = {Priority.HI: 0, Priority.NORM: 1, Priority.BULK: 2}
BY_RANK: Final = {rank: priority for priority, rank in RANKS.items()}

# A row does not say why it ended; the ledger of a damaged file is not to be trusted.
_LIKELY: Final = {
    Outcome.ANSWERED: Why.CLOUD,
    Outcome.FAILED: Why.POOL_FAILED,
    Outcome.EXPIRED: Why.DEADLINE,
}

# Statements below are put together from constants of this module only.
_COLUMNS: Final = (
    "device, id, model, priority, reason, channel, encoding, request, edge, "
    "accepted_ms, deadline_ms, due_ms, attempt, seal"
)
# What SQLite's check says of a page that it could not get.
_UNREAD: Final = re.compile(r"error code=(\d+)")
_NUMBERS: Final = struct.Struct("<Bdd")
_DAMAGED: Final = "its record was damaged on the agent's disk"


class RowDamaged(sqlite3.DatabaseError):
    """A row is not as it was written, which SQLite does not see."""


# Of an open row; one that ends before it is written has more.
_OPEN_ROW: Final = f"({', '.join('?' * 15)}, 0)"
_INSERT_OPEN: Final = f"INSERT INTO spill ({_COLUMNS}, ready, stage) VALUES "
_INSERT_ENDED: Final = (
    f"INSERT INTO spill ({_COLUMNS}, ready, "
    "stage, outcome, answer, ended_ms, closed_ms) "
    f"VALUES ({', '.join('?' * 20)}) ON CONFLICT DO NOTHING"
)
# One statement for many: each lets go of the interpreter, and a busy event loop gives
# it back only after milliseconds. SQLite takes 32,766 values in one.
INSERTED_TOGETHER: Final = 512
_INSERT_ONE: Final = f"{_INSERT_OPEN} {_OPEN_ROW} ON CONFLICT DO NOTHING"
# The log moves into the file when nobody waits for it (see `Outbox`), or else before
# the transaction that finds it long for its disk. Never within a commit, as
# SQLite would do it by itself: it keeps to itself what goes wrong there.
CHECKPOINT_CHANGES: Final = 300
LONG_LOG_BYTES: Final = 16 * 1024**2
SHORT_LOG_BYTES: Final = 1024**2
# A log that fills its disk could not move any more, as the file would have no room.
LOG_SHARE_OF_DISK: Final = 64

_GET_WITHOUT_REQUEST: Final = (
    f"SELECT {_COLUMNS.replace('request', 'NULL')} FROM spill "
    "WHERE device = ? AND id = ? AND stage = 0"
)


class OutboxUnusable(Exception):
    """The outbox cannot be opened at all, before somebody mends what is named."""


class OutboxFailed(Exception):
    """The file could not be read or written just now; try again later."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What the outbox knows of an id that a device sent before."""

    stage: Stage
    encoding: str
    outcome: Outcome | None = None
    answer: bytes | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """An outcome to be recorded, with the answer as the device is told it."""

    key: Key
    outcome: Outcome
    why: Why
    answer: bytes
    ended_ms: float
    stage: Stage


@dataclass(frozen=True, slots=True)
class Counts:
    """How full the outbox is, and the ledger of what went through it."""

    open: int
    open_bytes: int
    untold: int
    oldest_accepted_ms: float | None
    answered: int
    failed: int
    expired: int
    ledger: Ledger


class SpillTable:
    """Spills by (device, id). Every method but `transaction` runs inside one."""

    def __init__(self, db: sqlite3.Connection, path: Path) -> None:
        self._db = db
        self._path = path
        self._log = path.with_name(f"{path.name}-wal")
        self._long_log_bytes = _long_log_bytes(path)
        # Whoever wrote it before may have been killed after a sync that failed.
        self._log_in_doubt = True
        self._entries: Counter[tuple[str, str, str]] = Counter()
        self._checkpointed = 0
        self._synchronous = ""

    @classmethod
    def open(cls, path: Path, damage: str | None = None) -> Self:
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
            return cls(_open(path, damage), path)
        except (sqlite3.OperationalError, OSError) as error:
            raise OutboxFailed(
                f"cannot open the outbox {path}: {error}; "
                "check that its disk has space and works"
            ) from error

    def take_over(self, damaged: Path) -> int:
        """Add every row that can be read of another file; gives how many."""
        taken = 0
        columns = f"{_COLUMNS}, stage, outcome, answer, ended_ms"
        with contextlib.closing(salvage.readable_rows(damaged, columns)) as rows:
            for row in rows:
                try:
                    taken += self._take_over_row(row)
                except sqlite3.OperationalError:
                    raise  # the new file's own disk
                except Exception as error:  # noqa: BLE001 - such a row may hold anything
                    log.error("row_not_salvaged", row=str(row[:2]), error=str(error))
        return taken

    def _take_over_row(self, row: Sequence[Any]) -> bool:
        try:
            ended = _ended(row)
            spill = _spill(row) if ended is None else _closed_spill(row)
        except (ValueError, TypeError, KeyError, RowDamaged) as error:
            # Whoever waits for it hears that no answer will come.
            log.error("row_damaged", row=str(row[:2]), error=str(error))
            spill, ended = _given_up(row)
        if ended is None:
            return self.insert(spill)
        return self.insert_ended(spill, ended) is None

    def close(self) -> None:
        """Close the file."""
        if self._log_in_doubt:
            # SQLite folds the log into the file, which may be its last chance.
            with contextlib.suppress(sqlite3.Error):
                self._write_log_again()
        self._db.close()

    def leave(self) -> None:
        """Close the file, and let it and its log be as they are."""
        with contextlib.ExitStack() as last_closed:
            last_closed.callback(self._db.close)
            with contextlib.suppress(sqlite3.Error):
                # The last to close moves the log, unless it may only read.
                last = _connect_to_read(self._path)
                last_closed.callback(last.close)
                last.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            self._db.close()

    @contextlib.contextmanager
    def transaction(self, synchronous: Literal["FULL", "NORMAL"]) -> Iterator[None]:
        """All or nothing; FULL survives a power cut, NORMAL a killed process."""
        if synchronous != self._synchronous:
            self._db.execute(f"PRAGMA synchronous = {synchronous}")
            self._synchronous = synchronous
        if self._log_is_long():
            self.checkpoint()
        if self._log_in_doubt:
            self._write_log_again()
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            if self._entries:
                self._write_entries()
            self._db.execute("COMMIT")
        except BaseException as error:  # raised again: half a transaction may not stay
            self._entries.clear()
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            self._doubt_after(error)
            raise

    def _doubt_after(self, error: BaseException) -> None:
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_IOERR_FSYNC:
            self._log_in_doubt = True

    def _log_is_long(self) -> bool:
        with contextlib.suppress(OSError):
            return self._log.stat().st_size > self._long_log_bytes
        return False

    def _write_log_again(self) -> None:
        """Make the next sync of the log cover what a failed one did not.

        Linux counts what a failed sync covered as written, so no later sync makes up
        for it; a row committed behind such a gap is lost with the power. Folding the
        log into the database instead would leave a mixture of old and new pages when
        the power fails before the log's end is known to the disk.

        Raises:
            sqlite3.Error: somebody else writes, or the log cannot be written.
        """
        self._db.execute("BEGIN IMMEDIATE")  # Nobody begins the log anew meanwhile.
        try:
            salvage.write_again(self._log)
        except OSError as error:
            raise sqlite3.OperationalError(
                f"the log stays in doubt: {error}"
            ) from error
        finally:
            self._db.execute("ROLLBACK")
        self._log_in_doubt = False

    def _write_entries(self) -> None:
        self._each(
            "INSERT INTO ledger VALUES (?, ?, ?, ?) "
            "ON CONFLICT DO UPDATE SET count = count + excluded.count",
            [(*entry, count) for entry, count in self._entries.items()],
        )
        self._entries.clear()

    def insert(self, spill: Spill) -> bool:
        """Add an open spill; False when its id is there already."""
        return not self.insert_all([open_row(spill)])

    def insert_all(self, rows: Sequence[OpenRow]) -> list[Key]:
        """Add open spills; gives the ids that were there already."""
        known: list[Key] = []
        for start in range(0, len(rows), INSERTED_TOGETHER):
            some = rows[start : start + INSERTED_TOGETHER]
            try:
                self._insert_together(some)
            except sqlite3.IntegrityError:
                # It undoes all of the statement, and does not say which it was.
                known += [row.key for row in some if not self._insert_one(row)]
        return known

    def _insert_together(self, rows: Sequence[OpenRow]) -> None:
        statement = f"{_INSERT_OPEN} {', '.join([_OPEN_ROW] * len(rows))}"
        values = list(itertools.chain.from_iterable(row.values for row in rows))
        self._db.execute(statement, values)
        for reason, count in Counter([row.reason for row in rows]).items():
            self._entries[ACCEPTED, reason, ""] += count

    def _insert_one(self, row: OpenRow) -> bool:
        if self._db.execute(_INSERT_ONE, row.values).rowcount != 1:
            return False
        self._entries[ACCEPTED, row.reason, ""] += 1
        return True

    def insert_ended(self, spill: Spill, ended: Ended) -> int | None:
        """Add a spill that ended before it was written, or end the row of its id.

        Gives what `end` does: None as well when there was no row of its id.
        """
        if self._db.execute(_INSERT_ENDED, _ended_values(spill, ended)).rowcount != 1:
            return self.end(ended)
        self._entries[ACCEPTED, spill.reason.value, ""] += 1
        self._entries[ENDED, ended.outcome.value, ended.why.value] += 1
        return None

    def end(self, ended: Ended) -> int | None:
        """End an open row: the bytes it frees, or None when none was open."""
        row = self._db.execute(
            "SELECT seq, length(request) FROM spill "
            "WHERE device = ? AND id = ? AND stage = 0",
            ended.key,
        ).fetchone()
        if row is None:
            return None
        seq, size = row
        self._db.execute(
            "UPDATE spill SET stage = ?, outcome = ?, answer = ?, ended_ms = ?, "
            "closed_ms = ?, seal = ?, request = NULL, edge = NULL WHERE seq = ?",
            (
                ended.stage,
                ended.outcome.value,
                ended.answer,
                ended.ended_ms,
                _closed_ms(ended),
                _seal_of_answer(ended.key, ended.outcome.value, ended.answer),
                seq,
            ),
        )
        self._entries[ENDED, ended.outcome.value, ended.why.value] += 1
        return int(size or 0)

    @property
    def checkpoint_due(self) -> bool:
        """Whether enough was written that the log should move into the file."""
        return self._db.total_changes - self._checkpointed >= CHECKPOINT_CHANGES

    def checkpoint(self) -> None:
        """Move the log into the file; outside a transaction."""
        self._checkpointed = self._db.total_changes
        try:
            if self._log_in_doubt:
                self._write_log_again()
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error as error:
            # Nothing is lost: the log is read as well, and the next one tries again.
            self._doubt_after(error)
            log.warning("outbox_not_checkpointed", error=str(error))

    def find(self, key: Key) -> Recorded | None:
        """What is recorded of an id, if anything."""
        row = self._db.execute(
            "SELECT stage, encoding, outcome, answer, seal FROM spill "
            "WHERE device = ? AND id = ?",
            key,
        ).fetchone()
        if row is None:
            return None
        stage, encoding, outcome, answer, seal = row
        if outcome is not None:
            _check_seal(key, seal, _seal_of_answer(key, outcome, bytes(answer)))
        return Recorded(
            Stage(stage),
            encoding,
            None if outcome is None else Outcome(outcome),
            None if answer is None else bytes(answer),
        )

    def get(self, key: Key) -> Spill | None:
        """The open spill of that id."""
        found = self._select("WHERE device = ? AND id = ? AND stage = 0", key)
        return found[0] if found else None

    def get_all(self, keys: Iterable[Key]) -> dict[Key, Spill]:
        """Those of the keys that are open, by key; `request` is left empty."""
        found = {}
        for key in keys:
            row = self._db.execute(_GET_WITHOUT_REQUEST, key).fetchone()
            if row is not None:
                found[key] = _unsealed_spill(row)
        return found

    def mark_told(self, keys: Iterable[Key], told_ms: float) -> None:
        """The device, or its broker, has acknowledged the answer."""
        self._each(
            f"UPDATE spill SET stage = {after_step(Stage.SETTLED, Step.TELL):d}, "
            "closed_ms = ? WHERE device = ? AND id = ? "
            f"AND stage = {Stage.SETTLED:d}",
            [(told_ms, *key) for key in keys],
        )

    def give_up_untold(
        self, ended_before_ms: float, now_ms: float, *, limit: int
    ) -> list[Key]:
        """Record as undelivered what nobody has acknowledged since then."""
        rows = self._db.execute(
            f"UPDATE spill SET stage = {after_step(Stage.SETTLED, Step.GIVE_UP):d}, "
            "closed_ms = ? WHERE seq IN (SELECT seq FROM spill "
            "WHERE stage = 1 AND ended_ms < ? ORDER BY ended_ms LIMIT ?) "
            "RETURNING device, id",
            (now_ms, ended_before_ms, limit),
        ).fetchall()
        if rows:
            self._entries[UNDELIVERED, "", ""] += len(rows)
        return [(device, id_) for device, id_ in rows]

    def reschedule(self, keys: Iterable[Key], due_ms: float) -> None:
        """Make open spills due at another time."""
        self._each(
            "UPDATE spill SET due_ms = ?, ready = 0 "
            "WHERE device = ? AND id = ? AND stage = 0",
            [(due_ms, *key) for key in keys],
        )

    def claim_due(
        self,
        now_ms: float,
        *,
        limit: int,
        max_bytes: int,
        next_due_ms: Callable[[int], float],
    ) -> list[Spill]:
        """Take open spills that are due and count a send.

        The most urgent class comes first, in it the earliest deadline. One whose
        deadline has passed is left to expire.

        Args:
            now_ms: rows due at or before this.
            limit: at most so many rows.
            max_bytes: stop before the requests add up to more; one always fits.
            next_due_ms: attempt → when the row is due again.
        """
        self._promote(now_ms)
        claimed: list[Spill] = []
        seqs: list[int] = []
        size = 0
        for seq, *row in self._ready(now_ms, limit):
            spill = _spill(row)
            size += len(spill.request)
            if claimed and size > max_bytes:
                break
            seqs.append(seq)
            claimed.append(replace(spill, attempt=spill.attempt + 1))
        self._each(
            "UPDATE spill SET due_ms = ?, attempt = ?, ready = 0 WHERE seq = ?",
            [
                (next_due_ms(each.attempt), each.attempt, seq)
                for seq, each in zip(seqs, claimed, strict=True)
            ],
        )
        return claimed

    def _promote(self, now_ms: float) -> None:
        """What has become due takes its place among what is ready."""
        self._db.execute(
            "UPDATE spill SET ready = 1 WHERE seq IN (SELECT seq FROM spill "
            "WHERE stage = 0 AND ready = 0 AND due_ms <= ? ORDER BY due_ms LIMIT ?)",
            (now_ms, PROMOTED_ROWS),
        )

    def _ready(self, now_ms: float, limit: int) -> Iterator[Sequence[Any]]:
        for rank in BY_RANK:
            rows = self._db.execute(
                f"SELECT seq, {_COLUMNS} FROM spill WHERE stage = 0 AND ready = 1 "
                "AND priority = ? AND deadline_ms > ? ORDER BY deadline_ms LIMIT ?",
                (rank, now_ms, limit),
            )
            for row in rows:
                yield row
                limit -= 1
            if limit <= 0:
                return

    def expired(self, now_ms: float, *, limit: int) -> list[Spill]:
        """Open spills whose deadline has come, soonest first."""
        return self._select(
            "WHERE stage = 0 AND deadline_ms <= ? ORDER BY deadline_ms LIMIT ?",
            (now_ms, limit),
        )

    def next_deadline_ms(self) -> float | None:
        """The soonest deadline of an open spill."""
        found: float | None = self._scalar(
            "SELECT deadline_ms FROM spill WHERE stage = 0 ORDER BY deadline_ms LIMIT 1"
        )
        return found

    def untold(self, *, limit: int) -> list[tuple[Key, Channel, bytes]]:
        """Answers whose device has not acknowledged them, oldest first."""
        rows = self._db.execute(
            "SELECT device, id, channel, answer, outcome, seal FROM spill "
            "WHERE stage = 1 ORDER BY ended_ms LIMIT ?",
            (limit,),
        )
        found = []
        for device, id_, channel, answer, outcome, seal in rows:
            key = (device, id_)
            _check_seal(key, seal, _seal_of_answer(key, outcome, bytes(answer)))
            found.append((key, Channel(channel), bytes(answer)))
        return found

    def forget_closed(self, before_ms: float, *, limit: int) -> int:
        """Delete rows told or given up before then; gives how many went."""
        return self._db.execute(
            "DELETE FROM spill WHERE seq IN (SELECT seq FROM spill "
            "WHERE stage >= 2 AND closed_ms < ? LIMIT ?)",
            (before_ms, limit),
        ).rowcount

    def held(self) -> dict[str, Held]:
        """What each device has waiting. Reads every open row."""
        rows = self._db.execute(
            "SELECT device, count(*), coalesce(sum(length(request)), 0) "
            "FROM spill WHERE stage = 0 GROUP BY device"
        )
        return {device: Held(count, size) for device, count, size in rows}

    def counts(self, open_bytes: int) -> Counts:
        """Depth, age and outcomes.

        Args:
            open_bytes: of the open requests, which the caller knows: adding them up
                reads every open row.
        """
        # Both from the index alone, however many rows have ended.
        opened, first = self._db.execute(
            "SELECT count(*), min(seq) FROM spill INDEXED BY open_by_deadline "
            "WHERE stage = 0"
        ).fetchone()
        ledger = read_ledger(self._db, opened)
        return Counts(
            open=opened,
            open_bytes=open_bytes,
            untold=self._scalar("SELECT count(*) FROM spill WHERE stage = 1"),
            # Of the row written first: the oldest but for a few milliseconds.
            oldest_accepted_ms=self._scalar(
                "SELECT accepted_ms FROM spill WHERE seq = ?", (first,)
            ),
            answered=ledger.of(Outcome.ANSWERED),
            failed=ledger.of(Outcome.FAILED),
            expired=ledger.of(Outcome.EXPIRED),
            ledger=ledger,
        )

    def _select(self, where: str, values: Sequence[object]) -> list[Spill]:
        rows = self._db.execute(f"SELECT {_COLUMNS} FROM spill {where}", values)
        return [_spill(row) for row in rows]

    def _each(self, statement: str, values: Iterable[Sequence[object]]) -> None:
        self._db.executemany(statement, values)

    def _scalar(self, statement: str, values: Sequence[object] = ()) -> Any:  # noqa: ANN401 - a column's value
        row = self._db.execute(statement, values).fetchone()
        return None if row is None else row[0]


def read_ledger(db: sqlite3.Connection, waiting: int) -> Ledger:
    """The ledger as it is written, beside the open rows as they were counted."""
    rows = db.execute("SELECT entry, what, why, count FROM ledger").fetchall()
    return Ledger(
        accepted={what: n for entry, what, _, n in rows if entry == ACCEPTED},
        ended={(what, why): n for entry, what, why, n in rows if entry == ENDED},
        waiting=waiting,
        undelivered=sum(n for entry, _, _, n in rows if entry == UNDELIVERED),
    )


@dataclass(frozen=True, slots=True)
class OpenRow:
    """An open spill as it is written. Made apart, because it needs no file."""

    key: Key
    reason: str
    values: tuple[object, ...]


def open_row(spill: Spill) -> OpenRow:
    """A row of `insert_all`. In one piece: this is most of what an accept costs."""
    edge = None if spill.edge is None else pack_answer(spill.edge)
    reason = spill.reason.value
    values = (
        spill.device,
        spill.id,
        spill.model,
        RANKS[spill.priority],
        reason,
        spill.channel.value,
        spill.encoding,
        spill.request,
        edge,
        spill.accepted_ms,
        spill.deadline_ms,
        spill.due_ms,
        spill.attempt,
        _seal_of_request(spill, edge),
        spill.due_ms <= spill.accepted_ms,
    )
    return OpenRow((spill.device, spill.id), reason, values)


def _ended_values(spill: Spill, ended: Ended) -> tuple[object, ...]:
    """A row of `_INSERT_ENDED`: what it asked is of no use any more."""
    return (
        spill.device,
        spill.id,
        spill.model,
        RANKS[spill.priority],
        spill.reason.value,
        spill.channel.value,
        spill.encoding,
        None,
        None,
        spill.accepted_ms,
        spill.deadline_ms,
        spill.due_ms,
        spill.attempt,
        _seal_of_answer(ended.key, ended.outcome.value, ended.answer),
        spill.due_ms <= spill.accepted_ms,
        ended.stage,
        ended.outcome.value,
        ended.answer,
        ended.ended_ms,
        _closed_ms(ended),
    )


def _closed_ms(ended: Ended) -> float | None:
    return ended.ended_ms if ended.stage is Stage.TOLD else None


def is_damage(error: Exception) -> bool:
    """Whether an error says that the file is damaged, and not that the disk fails."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return isinstance(error, RowDamaged) or code in (
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
    )


def _seal_of_request(spill: Spill, edge: bytes | None) -> int:
    """A checksum of what never changes while a spill is open. SQLite keeps none."""
    names = "\0".join(
        (
            spill.device,
            spill.id,
            spill.model,
            spill.reason,
            spill.channel,
            spill.encoding,
        )
    )
    numbers = _NUMBERS.pack(RANKS[spill.priority], spill.accepted_ms, spill.deadline_ms)
    seal = zlib.crc32(numbers, zlib.crc32(names.encode(errors="replace")))
    return zlib.crc32(edge or b"", zlib.crc32(spill.request, seal))


def _seal_of_answer(key: Key, outcome: str, answer: bytes) -> int:
    """A checksum of what never changes once a spill has ended."""
    seal = zlib.crc32(repr((*key, outcome)).encode(errors="replace"))
    return zlib.crc32(answer, seal)


def _check_seal(key: Key, written: int | None, found: int) -> None:
    # Rows of the first schema have none.
    if written is not None and written != found:
        raise RowDamaged(
            f"the row of {key[1]!r} of {key[0]!r} is not as it was written"
        )


def _spill(row: Sequence[Any]) -> Spill:
    """The open spill of a row of `_COLUMNS`.

    Raises:
        RowDamaged: it is not as it was written.
    """
    spill = _unsealed_spill(row)
    edge = None if row[8] is None else bytes(row[8])
    _check_seal(spill.key, row[13], _seal_of_request(spill, edge))
    return spill


def _unsealed_spill(row: Sequence[Any]) -> Spill:
    """As `_spill`, of a row whose request was left out."""
    try:
        return _closed_spill(row)
    except (ValueError, TypeError, KeyError) as error:
        raise RowDamaged(f"a row cannot be read: {error}") from error


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


def _closed_spill(row: Sequence[Any]) -> Spill:
    return Spill(
        device=row[0],
        id=row[1],
        model=row[2],
        priority=BY_RANK[row[3]],
        reason=Reason(row[4]),
        channel=Channel(row[5]),
        encoding=row[6],
        request=bytes(row[7] or b""),
        edge=None if row[8] is None else unpack_answer(bytes(row[8])),
        accepted_ms=row[9],
        deadline_ms=row[10],
        due_ms=row[11],
        attempt=row[12],
    )


def _ended(row: Sequence[Any]) -> Ended | None:
    """What a row of `_COLUMNS`, stage, outcome, answer, ended_ms has come to."""
    stage, outcome, answer, ended_ms = row[-4:]
    if stage == Stage.OPEN:
        return None
    how = Outcome(outcome)
    key = (row[0], row[1])
    _check_seal(key, row[13], _seal_of_answer(key, outcome, bytes(answer)))
    return Ended(key, how, _LIKELY[how], bytes(answer), ended_ms, Stage(stage))


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


def _connect_to_read(path: Path) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode=ro"
    return sqlite3.connect(uri, uri=True, timeout=10.0)


def _reads_well(path: Path) -> bool:
    """Check the pages by reading only; False where only writing can tell.

    A connection that may write moves the log into the file when it closes, and a
    damaged file would not stay as it was found.

    Raises:
        sqlite3.DatabaseError: a page is damaged, or cannot be read.
    """
    try:
        with contextlib.closing(_connect_to_read(path)) as db:
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
            taken = table.take_over(damaged)
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


def _long_log_bytes(path: Path) -> int:
    """How long the log may become before work waits for it to move."""
    with contextlib.suppress(OSError):
        disk = os.statvfs(path.parent)
        share = disk.f_blocks * disk.f_frsize // LOG_SHARE_OF_DISK
        return max(SHORT_LOG_BYTES, min(LONG_LOG_BYTES, share))
    return LONG_LOG_BYTES


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, timeout=10.0
    )
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA wal_autocheckpoint = 0")
        # A log that has moved begins anew at its start, and no longer than this.
        db.execute(f"PRAGMA journal_size_limit = {_long_log_bytes(path)}")
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
