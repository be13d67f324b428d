"""Makes a database have the newest schema, and refuses one that is newer still.

The caller holds the writers' lock, so that of several programs that open a database at
once one migrates it and the others find it done.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import SQLAlchemyError

NEWEST: Final = "0003"
KNOWN: Final = ("0001", "0002", NEWEST)
MIGRATIONS: Final = Path(__file__).parent / "migrations"


class NewerSchema(Exception):
    """The database was written by a newer program; nothing was changed."""


def is_newest(connection: Connection) -> bool:
    """Whether there is nothing to do, in one query.

    Raises:
        NewerSchema: it is newer than this program.
    """
    try:
        with connection.begin_nested():
            found = connection.execute(
                text("SELECT version_num FROM alembic_version")
            ).scalar()
    except SQLAlchemyError:
        return False  # No such table: whatever else is wrong, migrating will say.
    return _check(None if found is None else str(found)) == NEWEST


def migrate(connection: Connection) -> None:
    """Bring the database to the newest schema, in the connection's transaction.

    Raises:
        NewerSchema: it is newer than this program.
    """
    if _before_migrations(connection) is None and is_newest(connection):
        return
    # Imported here: most programs find that there is nothing to do.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    before = _before_migrations(connection)
    if before is not None:
        command.stamp(config, before)
    command.upgrade(config, "head")


def _before_migrations(connection: Connection) -> str | None:
    """The revision of a SQLite file that was made before there were migrations."""
    if connection.dialect.name != "sqlite":
        return None
    found = int(connection.exec_driver_sql("PRAGMA user_version").scalar_one())
    if inspect(connection).has_table("alembic_version"):
        return None
    return _check(f"{found:04}") if found else None


def _check(found: str | None) -> str | None:
    if found is not None and found not in KNOWN:
        raise NewerSchema(
            f"it has schema {found}, this program knows {NEWEST}: use the version of "
            "overspill that wrote it, or a newer one"
        )
    return found
