"""The outbox, looked at and never touched: beside a running daemon, or without one."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from edge_agent.adapters.spill_file import OutboxUnusable
from edge_agent.adapters.spill_rows import BY_RANK
from edge_agent.adapters.spill_schema import SCHEMA_VERSION
from edge_agent.core.delivery import Key, Stage

_SUMMARY: Final = (
    "device, id, model, priority, reason, channel, encoding, stage, outcome, attempt, "
    "accepted_ms, deadline_ms, due_ms, ended_ms, closed_ms, "
    "coalesce(length(request), 0), coalesce(length(answer), 0)"
)


@dataclass(frozen=True, slots=True)
class Seen:
    """One row, without what it carries. Times are Unix milliseconds, sizes bytes."""

    device: str
    id: str
    model: str
    priority: str
    reason: str
    channel: str
    encoding: str
    stage: str
    outcome: str | None
    attempt: int
    accepted_ms: float
    deadline_ms: float
    due_ms: float
    ended_ms: float | None
    closed_ms: float | None
    request_bytes: int
    answer_bytes: int

    @property
    def key(self) -> Key:
        """Whose it is."""
        return (self.device, self.id)


@dataclass(frozen=True, slots=True)
class Carried:
    """What a row carries, packed as the outbox holds it."""

    request: bytes | None
    edge: bytes | None
    answer: bytes | None


class SpillView:
    """Read-only; another process may write meanwhile."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path) -> Iterator[Self]:
        """Look at an outbox.

        Raises:
            OutboxUnusable: there is none, it cannot be read, or is of another version.
        """
        if not path.exists():
            raise OutboxUnusable(
                f"there is no outbox at {path}: name the agent's folder with "
                "--state-dir"
            )
        uri = path.absolute().as_uri() + "?mode=ro"
        try:
            with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=10.0)) as db:
                _check_version(db, path)
                yield cls(db)
        except sqlite3.DatabaseError as error:
            raise OutboxUnusable(
                f"cannot read the outbox {path}: {error}; check that it is an outbox "
                "and that you may read its folder"
            ) from error

    def count(self, stage: Stage | None = None) -> int:
        """How many rows, in all or of one stage."""
        where, values = _of_stage(stage)
        row = self._db.execute(f"SELECT count(*) FROM spill {where}", values).fetchone()
        return int(row[0])

    def rows(self, stage: Stage | None = None, *, limit: int = -1) -> Iterator[Seen]:
        """Rows in the order in which they were written."""
        where, values = _of_stage(stage)
        rows = self._db.execute(
            f"SELECT {_SUMMARY} FROM spill {where} ORDER BY seq LIMIT ?",
            (*values, limit),
        )
        return map(_seen, rows)

    def find(self, id_: str, device: str | None = None) -> list[Seen]:
        """The rows of that id, of one device or of every one that used it."""
        if device is not None:
            rows = self._db.execute(
                f"SELECT {_SUMMARY} FROM spill WHERE device = ? AND id = ?",
                (device, id_),
            )
        else:
            rows = self._db.execute(
                f"SELECT {_SUMMARY} FROM spill WHERE id = ? ORDER BY device", (id_,)
            )
        return [_seen(row) for row in rows]

    def carried(self, key: Key) -> Carried:
        """What the row of that key carries; nothing when it has gone meanwhile."""
        row = self._db.execute(
            "SELECT request, edge, answer FROM spill WHERE device = ? AND id = ?", key
        ).fetchone()
        return Carried(None, None, None) if row is None else Carried(*row)


def _of_stage(stage: Stage | None) -> tuple[str, tuple[int, ...]]:
    return ("", ()) if stage is None else ("WHERE stage = ?", (int(stage),))


def _check_version(db: sqlite3.Connection, path: Path) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version != SCHEMA_VERSION:
        raise OutboxUnusable(
            f"the outbox {path} has schema {version}, this command knows "
            f"{SCHEMA_VERSION}: start the agent of this version once, or use the "
            "command of the version that made it"
        )


def _seen(row: Sequence[Any]) -> Seen:
    device, id_, model, priority, reason, channel, encoding, stage, *rest = row
    return Seen(
        device,
        id_,
        model,
        BY_RANK[priority].value,
        reason,
        channel,
        encoding,
        Stage(stage).name.lower(),
        *rest,
    )
