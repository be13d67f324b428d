"""The fleet's memory in SQLite. The only user of SQLAlchemy.

The daemon and the commands of operators open the same file at the same time: a
writer takes the lock when it begins (BEGIN IMMEDIATE), so what it read is still
true when it commits; readers never wait (WAL). Every call blocks.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from sqlalchemy import JSON, Connection, Engine, create_engine, event, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from broker.messages import SlotReport
from fleet.core.devices import Device
from fleet.core.rollouts import (
    AgentProgress,
    Rollout,
    RolloutState,
)

SCHEMA: Final = 1
WRITE: Final = {"overspill_write": True}


class DatabaseUnavailable(Exception):
    """The fleet's database cannot be used now; nothing was changed."""


@dataclass(frozen=True, slots=True)
class PublishedVersion:
    """A version in the registry and when this fleet first published it."""

    model: str
    version: str
    sha256: str
    size_bytes: int
    key_id: str
    published_at_ms: int


@dataclass(frozen=True, slots=True)
class AgentResult:
    """The last state of one agent in one rollout, and since when."""

    generation: int
    agent: str
    state: str
    version: str | None
    reason: str | None
    since_ms: int


class Base(DeclarativeBase):
    """The schema, version 1."""


class DeviceRow(Base):
    """One agent as it last reported."""

    __tablename__ = "devices"
    agent: Mapped[str] = mapped_column(primary_key=True)
    first_seen_ms: Mapped[int]
    last_seen_ms: Mapped[int]
    reports: Mapped[int]
    slots: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    counters: Mapped[dict[str, int]] = mapped_column(JSON)
    facts: Mapped[dict[str, str]] = mapped_column(JSON)


class VersionRow(Base):
    """One published version of a model."""

    __tablename__ = "versions"
    model: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[str] = mapped_column(primary_key=True)
    sha256: Mapped[str]
    size_bytes: Mapped[int]
    key_id: Mapped[str]
    published_at_ms: Mapped[int]


class RolloutRow(Base):
    """One rollout; rows are never removed, so a generation is never given twice."""

    __tablename__ = "rollouts"
    generation: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    model: Mapped[str]
    version: Mapped[str]
    targets: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    started_at_ms: Mapped[int]
    state: Mapped[str]
    state_since_ms: Mapped[int]


class ResultRow(Base):
    """How far one agent has come in one rollout."""

    __tablename__ = "results"
    generation: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    agent: Mapped[str] = mapped_column(primary_key=True)
    state: Mapped[str]
    version: Mapped[str | None]
    reason: Mapped[str | None]
    since_ms: Mapped[int]


class Ledger:
    """What can be read and written inside one transaction."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def devices(self) -> dict[str, Device]:
        """Every known agent, by name."""
        rows = self._session.scalars(select(DeviceRow).order_by(DeviceRow.agent))
        return {row.agent: _device(row) for row in rows}

    def device(self, agent: str) -> Device | None:
        """One agent, if it ever reported."""
        row = self._session.get(DeviceRow, agent)
        return None if row is None else _device(row)

    def keep_device(self, device: Device) -> None:
        """Write what is known of an agent."""
        self._session.merge(
            DeviceRow(
                agent=device.agent,
                first_seen_ms=device.first_seen_ms,
                last_seen_ms=device.last_seen_ms,
                reports=device.reports,
                slots=[each.model_dump(mode="json") for each in device.slots],
                counters=dict(device.counters),
                facts=dict(device.facts),
            )
        )

    def versions(self) -> list[PublishedVersion]:
        """Every version, in the order of publishing."""
        rows = self._session.scalars(
            select(VersionRow).order_by(
                VersionRow.model, VersionRow.published_at_ms, VersionRow.version
            )
        )
        return [
            PublishedVersion(
                model=row.model,
                version=row.version,
                sha256=row.sha256,
                size_bytes=row.size_bytes,
                key_id=row.key_id,
                published_at_ms=row.published_at_ms,
            )
            for row in rows
        ]

    def keep_version(self, version: PublishedVersion) -> None:
        """Write a published version; its first time of publishing stays."""
        known = self._session.get(VersionRow, (version.model, version.version))
        first_ms = version.published_at_ms if known is None else known.published_at_ms
        self._session.merge(
            VersionRow(
                model=version.model,
                version=version.version,
                sha256=version.sha256,
                size_bytes=version.size_bytes,
                key_id=version.key_id,
                published_at_ms=first_ms,
            )
        )

    def rollouts(self) -> list[Rollout]:
        """Every rollout, oldest first."""
        rows = self._session.scalars(select(RolloutRow).order_by(RolloutRow.generation))
        return [_rollout(row) for row in rows]

    def keep_rollout(self, rollout: Rollout) -> None:
        """Write a rollout that begins."""
        self._session.add(
            RolloutRow(
                generation=rollout.generation,
                model=rollout.model,
                version=rollout.version,
                targets=None if rollout.targets is None else sorted(rollout.targets),
                started_at_ms=rollout.started_at_ms,
                state=RolloutState.IN_PROGRESS.value,
                state_since_ms=rollout.started_at_ms,
            )
        )
        self._session.flush()

    def keep_state(self, generation: int, state: RolloutState, now_ms: int) -> bool:
        """Write how far a rollout is.

        Returns:
            Whether that is news.
        """
        row = self._session.get_one(RolloutRow, generation)
        if row.state == state.value:
            return False
        row.state, row.state_since_ms = state.value, now_ms
        return True

    def keep_result(self, generation: int, came: AgentProgress, now_ms: int) -> bool:
        """Write how far an agent is in a rollout.

        Returns:
            Whether that is news.
        """
        row = self._session.get(ResultRow, (generation, came.agent))
        news = (came.state.value, came.version, came.reason)
        if row is not None and (row.state, row.version, row.reason) == news:
            return False
        self._session.merge(
            ResultRow(
                generation=generation,
                agent=came.agent,
                state=came.state.value,
                version=came.version,
                reason=came.reason,
                since_ms=now_ms,
            )
        )
        return True

    def results(self) -> Mapping[tuple[int, str], AgentResult]:
        """The last written state of each agent in each rollout."""
        return {
            (row.generation, row.agent): AgentResult(
                generation=row.generation,
                agent=row.agent,
                state=row.state,
                version=row.version,
                reason=row.reason,
                since_ms=row.since_ms,
            )
            for row in self._session.scalars(select(ResultRow))
        }


class FleetDatabase:
    """The file, opened by `with`; made when it is not there.

    Args:
        path: the SQLite file; its folder must exist.
        timeout_s: how long to wait while another process writes.
    """

    def __init__(self, path: Path, *, timeout_s: float = 10.0) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._engine: Engine | None = None

    def __enter__(self) -> Self:
        """Open the file, and make or check its schema.

        Raises:
            DatabaseUnavailable: not a database, of a newer schema, or not writable.
        """
        engine = create_engine(
            f"sqlite:///{self._path}", connect_args={"timeout": self._timeout_s}
        )
        event.listen(engine, "connect", _prepare)
        event.listen(engine, "begin", _begin)
        self._engine = engine
        try:
            with self._transaction(WRITE) as session:
                _make_schema(session.connection(), self._path)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Close every connection."""
        self.close()

    def close(self) -> None:
        """Close every connection; a second time does nothing."""
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None

    @contextmanager
    def reading(self) -> Iterator[Ledger]:
        """One consistent view; never waits for a writer.

        Raises:
            DatabaseUnavailable: the file cannot be read.
        """
        with self._transaction({}) as session:
            yield Ledger(session)

    @contextmanager
    def writing(self) -> Iterator[Ledger]:
        """One transaction that no other writer can come between.

        Raises:
            DatabaseUnavailable: locked for too long, full, or not writable. What
                was written inside is undone.
        """
        with self._transaction(WRITE) as session:
            yield Ledger(session)

    @contextmanager
    def _transaction(self, options: Mapping[str, Any]) -> Iterator[Session]:
        if self._engine is None:
            raise RuntimeError("the fleet's database is not open: use `with`")
        try:
            with (
                self._engine.connect().execution_options(**options) as connection,
                Session(connection) as session,
            ):
                session.connection()  # Begins here, and not at the first statement.
                yield session
                session.commit()
        except (SQLAlchemyError, sqlite3.Error) as error:
            raise DatabaseUnavailable(_sentence(self._path, error)) from error


def _make_schema(connection: Connection, path: Path) -> None:
    found = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
    if found > SCHEMA:
        raise DatabaseUnavailable(
            f"{path} has schema {found}, this program knows {SCHEMA}: "
            "use the version of overspill that wrote it, or a newer one"
        )
    if found < SCHEMA:
        Base.metadata.create_all(connection)
        connection.exec_driver_sql(f"PRAGMA user_version = {SCHEMA}")


def _prepare(connection: sqlite3.Connection, _record: object) -> None:
    # SQLAlchemy's `begin` event says BEGIN; the driver must not do so by itself.
    connection.isolation_level = None
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin(connection: Connection) -> None:
    write = connection.get_execution_options().get("overspill_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _sentence(path: Path, error: Exception) -> str:
    cause = getattr(error, "orig", None) or error
    text = str(cause).splitlines()[0]
    advice = {
        "database is locked": "another process is writing for too long: try again",
        "unable to open database file": "check the folder and its permissions",
        "database or disk is full": "make room on the disk",
        "attempt to write a readonly database": "check the file's permissions",
        "file is not a database": "it is some other file: choose another home",
    }.get(text, "nothing was changed")
    return f"{path}: {text}: {advice}"


def _device(row: DeviceRow) -> Device:
    return Device(
        agent=row.agent,
        first_seen_ms=row.first_seen_ms,
        last_seen_ms=row.last_seen_ms,
        slots=tuple(SlotReport.model_validate(each) for each in row.slots),
        counters=row.counters,
        facts=row.facts,
        reports=row.reports,
    )


def _rollout(row: RolloutRow) -> Rollout:
    return Rollout(
        generation=row.generation,
        model=row.model,
        version=row.version,
        started_at_ms=row.started_at_ms,
        targets=None if row.targets is None else frozenset(row.targets),
    )
