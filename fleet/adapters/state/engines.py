"""How a transaction begins in each database, and what its errors mean to a person.

A writer takes the lock when it begins (SQLite: BEGIN IMMEDIATE; PostgreSQL: an advisory
lock until the commit), so what it read is still true when it commits; readers have one
consistent view and never wait.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

WRITE: Final = "overspill_write"
# "overspil" in ASCII: nobody else's advisory lock in this database.
LOCK: Final = 0x6F76657273706C6C
CONNECT_S: Final = 10
STATEMENT_MS: Final = 60_000
STALL_MS: Final = 20_000
POSTGRES: Final = ("postgresql", "postgres", "postgresql+psycopg")


class BadDatabaseUrl(ValueError):
    """The place of the fleet's database cannot be read; says why."""


def read_place(place: str | Path) -> URL:
    """The URL of a path, of `sqlite:///path` or of `postgresql://…`.

    Raises:
        BadDatabaseUrl: it is none of these.
    """
    if isinstance(place, Path) or "://" not in place:
        return URL.create("sqlite", database=str(Path(place).expanduser()))
    try:
        url = make_url(place)
    except (ArgumentError, ValueError) as error:
        # Not the URL itself: it may hold a password.
        raise BadDatabaseUrl(
            "the fleet's database is a path or "
            "postgresql://user:password@host:port/name, and this URL cannot be read"
        ) from error
    if url.drivername in POSTGRES:
        if find_spec("psycopg") is None:
            raise BadDatabaseUrl(
                "a fleet's state in PostgreSQL needs psycopg: "
                "run `pip install 'overspill[postgres]'`"
            )
        return url.set(drivername="postgresql+psycopg")
    if url.drivername == "sqlite" and url.database:
        return url
    raise BadDatabaseUrl(
        f"the fleet's database cannot be in {url.drivername}: use a path for SQLite, "
        "or postgresql://user:password@host:port/name"
    )


def place_of(url: URL) -> str:
    """Where it is, for people; without the password."""
    if url.drivername == "sqlite":
        return url.database or ""
    return url.set(drivername="postgresql").render_as_string(hide_password=True)


def make_engine(url: URL, *, timeout_s: float) -> Engine:
    """The engine for a database.

    Args:
        url: from `read_place`.
        timeout_s: how long to wait while another process writes.
    """
    if url.drivername == "sqlite":
        engine = create_engine(url, connect_args={"timeout": timeout_s})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    engine = create_engine(
        url,
        pool_pre_ping=True,
        connect_args=_postgres_arguments(url.query, timeout_s),
        isolation_level="READ COMMITTED",
    )
    event.listen(engine, "begin", _begin_postgres)
    return engine


def options(engine: Engine, *, write: bool) -> dict[str, Any]:
    """The execution options of a connection that is to read or to write."""
    if engine.dialect.name == "sqlite":
        return {WRITE: write}
    if write:
        # Each statement sees what was committed before it; with the lock held nothing
        # is in between.
        return {WRITE: True}
    return {
        WRITE: False,
        "isolation_level": "REPEATABLE READ",
        "postgresql_readonly": True,
    }


def sentence(place: str, error: Exception) -> str:
    """What happened to the database at `place`, and what to do next."""
    cause = getattr(error, "orig", None) or error
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    state = getattr(cause, "sqlstate", None)
    if getattr(error, "connection_invalidated", False):
        # Perhaps only the answer to COMMIT was lost.
        return f"{place}: {lines[0]}: {_BROKEN}"
    if state is None and not isinstance(cause, sqlite3.Error):
        # What libpq says of a connection that never was has no code.
        advice = next((do for say, do in _UNCONNECTED.items() if say in str(cause)), "")
        return f"{place}: {lines[-1]}: {advice or _NOTHING}"
    return f"{place}: {lines[0]}: {_ADVICE.get(state or lines[0], _NOTHING)}"


_NOTHING: Final = "nothing was changed"
_BROKEN: Final = "the connection broke off: look whether it was done, then try again"
_WAITED: Final = "another process is writing for too long: try again"
_ADVICE: Final[Mapping[str, str]] = {
    "database is locked": _WAITED,
    "unable to open database file": "check the folder and its permissions",
    "database or disk is full": "make room on the disk",
    "attempt to write a readonly database": "check the file's permissions",
    "file is not a database": "it is some other file: choose another home",
    "55P03": _WAITED,
    "57014": "the server was too slow: try again",
    "53100": "make room on the server's disk",
    "53300": "the server takes no more connections: try again",
    "42501": "let this user create and change tables there (make it the owner)",
    "25006": "it is a standby or read-only: use the primary's address",
}
_UNCONNECTED: Final[Mapping[str, str]] = {
    "password authentication failed": "check user and password in the URL",
    "does not exist": "create it (createdb), or check the name in the URL",
    "refused": "check host and port, and that the server is up",
    "could not translate host name": "check the host in the URL",
    "No such file or directory": "check the socket's folder, and that the server is up",
    "timeout": "check host and port, and the network between",
}


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    # SQLAlchemy's `begin` event says BEGIN; the driver must not do so by itself.
    connection.isolation_level = None
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    write = connection.get_execution_options().get(WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _begin_postgres(connection: Connection) -> None:
    if connection.get_execution_options().get(WRITE, False):
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCK})")


def _postgres_arguments(asked: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
    """A deadline for all that leaves the process; what the URL asks for is kept."""
    given = {
        "connect_timeout": CONNECT_S,
        "tcp_user_timeout": STALL_MS,
        "application_name": "overspill",
        "options": f"-c lock_timeout={max(1, int(timeout_s * 1000))} "
        f"-c statement_timeout={STATEMENT_MS} "
        f"-c idle_in_transaction_session_timeout={STATEMENT_MS}",
    }
    return {name: value for name, value in given.items() if name not in asked}
