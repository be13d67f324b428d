"""The outbox's table and its ledger: every statement that changes them.

A row's stage changes only as `core.delivery.NEXT` says. What a transaction takes in and
ends is counted in the ledger by the same transaction. Blocking, and confined to one
thread; `adapters.outbox` gives it one.
"""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from edge_agent.adapters.spill_log import WriteAheadLog
from edge_agent.adapters.spill_rows import (
    BY_RANK,
    Ended,
    OpenRow,
    Recorded,
    check_seal,
    closed_ms,
    ended_values,
    open_row,
    read_spill,
    seal_of_answer,
    unsealed_spill,
)
from edge_agent.adapters.spill_schema import COLUMNS
from edge_agent.core.delivery import (
    Channel,
    Key,
    Outcome,
    Spill,
    Stage,
    Step,
    after_step,
)
from edge_agent.core.ledger import Ledger
from edge_agent.core.quotas import Held

ACCEPTED: Final = "accepted"
ENDED: Final = "ended"
UNDELIVERED: Final = "undelivered"
PROMOTED_ROWS: Final = 2048

# Statements are put together from constants of these modules only.
# Of an open row; one that ends before it is written has more.
_OPEN_ROW: Final = f"({', '.join('?' * 15)}, 0)"
_INSERT_OPEN: Final = f"INSERT INTO spill ({COLUMNS}, ready, stage) VALUES "
_INSERT_ENDED: Final = (
    f"INSERT INTO spill ({COLUMNS}, ready, "
    "stage, outcome, answer, ended_ms, closed_ms) "
    f"VALUES ({', '.join('?' * 20)}) ON CONFLICT DO NOTHING"
)
# One statement for many: each lets go of the interpreter, and a busy event loop gives
# it back only after milliseconds. SQLite takes 32,766 values in one.
INSERTED_TOGETHER: Final = 512
_INSERT_ONE: Final = f"{_INSERT_OPEN} {_OPEN_ROW} ON CONFLICT DO NOTHING"
_GET_WITHOUT_REQUEST: Final = (
    f"SELECT {COLUMNS.replace('request', 'NULL')} FROM spill "
    "WHERE device = ? AND id = ? AND stage = 0"
)


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
        self.log = WriteAheadLog(db, path)
        self._entries: Counter[tuple[str, str, str]] = Counter()
        self._synchronous = ""

    def close(self) -> None:
        """Close the file."""
        # SQLite folds the log into the file, which may be its last chance.
        with contextlib.suppress(sqlite3.Error):
            self.log.settle_doubt()
        self._db.close()

    def leave(self) -> None:
        """Close the file, and let it and its log be as they are."""
        with contextlib.ExitStack() as last_closed:
            last_closed.callback(self._db.close)
            with contextlib.suppress(sqlite3.Error):
                # The last to close moves the log, unless it may only read.
                last = connect_to_read(self._path)
                last_closed.callback(last.close)
                last.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            self._db.close()

    @contextlib.contextmanager
    def transaction(self, synchronous: Literal["FULL", "NORMAL"]) -> Iterator[None]:
        """All or nothing; FULL survives a power cut, NORMAL a killed process."""
        if synchronous != self._synchronous:
            self._db.execute(f"PRAGMA synchronous = {synchronous}")
            self._synchronous = synchronous
        self.log.prepare()
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
            self.log.doubt_after(error)
            raise

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
        if self._db.execute(_INSERT_ENDED, ended_values(spill, ended)).rowcount != 1:
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
                closed_ms(ended),
                seal_of_answer(ended.key, ended.outcome.value, ended.answer),
                seq,
            ),
        )
        self._entries[ENDED, ended.outcome.value, ended.why.value] += 1
        return int(size or 0)

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
            check_seal(key, seal, seal_of_answer(key, outcome, bytes(answer)))
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
                found[key] = unsealed_spill(row)
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
            spill = read_spill(row)
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
                f"SELECT seq, {COLUMNS} FROM spill WHERE stage = 0 AND ready = 1 "
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
            check_seal(key, seal, seal_of_answer(key, outcome, bytes(answer)))
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
        rows = self._db.execute(f"SELECT {COLUMNS} FROM spill {where}", values)
        return [read_spill(row) for row in rows]

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


def connect_to_read(path: Path) -> sqlite3.Connection:
    """A connection that cannot write."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    return sqlite3.connect(uri, uri=True, timeout=10.0)
