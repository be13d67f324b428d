"""The fleet's database: transactions, and the audit log's head beside it.

The daemon and the commands of operators open the same database at the same time. A
writer comes after the one before it; readers never wait. Every call blocks.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import structlog
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from fleet.adapters.audit_head import AuditHead
from fleet.adapters.state.engines import (
    make_engine,
    options,
    place_of,
    read_place,
    sentence,
)
from fleet.adapters.state.ledger import Ledger
from fleet.adapters.state.schema import NewerSchema, is_newest, migrate

log = structlog.get_logger(__name__)


class DatabaseUnavailable(Exception):
    """The fleet's database cannot be used now.

    Nothing was changed, unless it says that the connection broke off: then the commit
    may have been done, and only its answer lost.
    """


class FleetDatabase:
    """A SQLite file or a PostgreSQL database, opened by `with`; a file is made.

    Args:
        place: a path (its folder must exist), `sqlite:///path` or `postgresql://…`.
        timeout_s: how long to wait while another process writes.
        head: where the audit log's head is kept outside of the database.

    Raises:
        BadDatabaseUrl: no such place.
    """

    def __init__(
        self,
        place: Path | str,
        *,
        timeout_s: float = 10.0,
        head: AuditHead | None = None,
    ) -> None:
        self._url = read_place(place)
        self._timeout_s = timeout_s
        self._head = head
        self._engine: Engine | None = None
        self.place = place_of(self._url)

    def __enter__(self) -> Self:
        """Open the database, and bring it to the newest schema.

        Raises:
            DatabaseUnavailable: not a database, of a newer schema, or not writable.
        """
        self._engine = make_engine(self._url, timeout_s=self._timeout_s)
        try:
            with self._transaction(write=False) as connection:
                ready = is_newest(connection)
            if not ready:
                with self._transaction(write=True) as connection:
                    migrate(connection)
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
            DatabaseUnavailable: the database cannot be read.
        """
        with self._transaction(write=False) as connection:
            yield Ledger(connection)

    @contextmanager
    def writing(self) -> Iterator[Ledger]:
        """One transaction that no other writer can come between.

        Raises:
            DatabaseUnavailable: locked for too long, full, or not writable. What
                was written inside is undone.
        """
        with self._transaction(write=True) as connection:
            ledger = Ledger(connection)
            kept = self._head.read() if self._head is not None else None
            yield ledger
            moved = ledger.head_to_keep(kept)
        # After the commit: a head must never name an entry that a crash takes back.
        if moved is not None and self._head is not None:
            try:
                self._head.keep(moved)
            except OSError as error:
                log.warning(
                    "the audit log's head is not kept beside the database",
                    file=str(self._head.path),
                    reason=error.strerror or str(error),
                )

    @contextmanager
    def _transaction(self, *, write: bool) -> Iterator[Connection]:
        if self._engine is None:
            raise RuntimeError("the fleet's database is not open: use `with`")
        try:
            with (
                self._engine.connect().execution_options(
                    **options(self._engine, write=write)
                ) as connection,
                connection.begin(),  # Begins here, and not at the first statement.
            ):
                yield connection
        except (SQLAlchemyError, sqlite3.Error) as error:
            raise DatabaseUnavailable(sentence(self.place, error)) from error
        except NewerSchema as error:
            raise DatabaseUnavailable(f"{self.place}: {error}") from error
