"""The tables, as the newest schema has them. Times are Unix time in milliseconds.

What makes a database have these tables is in `migrations`; a test holds both equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Dialect,
    Index,
    MetaData,
    String,
    Table,
    TypeDecorator,
)
from sqlalchemy.dialects import postgresql, sqlite
from typing_extensions import override


class Words(TypeDecorator[str]):
    """Text from the wire. PostgreSQL keeps no zero character, and so neither does SQLite."""

    impl = String
    cache_ok = True

    @override
    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        """What is kept of a text."""
        return None if value is None else value.replace("\0", "�")


METADATA: Final = MetaData()


def _key(name: str, kind: type[String | BigInteger] = String) -> Column[Any]:
    return Column(name, kind, primary_key=True, autoincrement=False)


def _said(name: str, kind: Any, *, null: bool = False) -> Column[Any]:  # noqa: ANN401 - SQLAlchemy's types, as classes or instances
    return Column(name, kind, nullable=null)


DEVICES: Final = Table(
    "devices",
    METADATA,
    _key("agent"),
    _said("first_seen_ms", BigInteger),
    _said("last_seen_ms", BigInteger),
    _said("reports", BigInteger),
    _said("slots", JSON),
    _said("counters", JSON),
    _said("facts", JSON),
)
LABELS: Final = Table(
    "labels",
    METADATA,
    _key("agent"),
    _key("key"),
    _said("value", Words),
)
RETIRED: Final = Table(
    "retired",
    METADATA,
    _key("agent"),
    _said("at_ms", BigInteger),
    _said("who", Words),
    _said("reason", Words),
)
# What an agent was last told that it should serve.
DESIRED: Final = Table(
    "desired",
    METADATA,
    _key("agent"),
    _said("generation", BigInteger),
    _said("sha256", String),
    _said("models", JSON),
)
VERSIONS: Final = Table(
    "versions",
    METADATA,
    _key("model"),
    _key("version"),
    _said("sha256", String),
    _said("size_bytes", BigInteger),
    _said("published_at_ms", BigInteger),
    _said("epoch", BigInteger),
    _said("state", String),
    _said("requires", JSON),
)
# Rows are never removed, so that a generation is never given twice. `terms` is the
# whole order, `course` how far it is but for the agents, which are in RESULTS.
ROLLOUTS: Final = Table(
    "rollouts",
    METADATA,
    _key("generation", BigInteger),
    _said("model", String),
    _said("version", String),
    _said("targets", JSON(none_as_null=True), null=True),
    _said("started_at_ms", BigInteger),
    _said("state", String),
    _said("state_since_ms", BigInteger),
    _said("epoch", BigInteger),
    _said("terms", JSON),
    _said("course", JSON),
)
RESULTS: Final = Table(
    "results",
    METADATA,
    _key("generation", BigInteger),
    _key("agent"),
    _said("state", String),
    _said("version", Words, null=True),
    _said("reason", Words, null=True),
    _said("since_ms", BigInteger),
    _said("told_at_ms", BigInteger),
    _said("wave", BigInteger),
    _said("mark", BigInteger),
    _said("shadow", Boolean),
    _said("before", Words, null=True),
    _said("before_epoch", BigInteger),
    # Only the newest few of an agent are asked for, among years of them.
    Index("results_by_agent", "agent"),
)
EVENTS: Final = Table(
    "rollout_events",
    METADATA,
    _key("generation", BigInteger),
    _key("sequence", BigInteger),
    _said("at_ms", BigInteger),
    _said("kind", String),
    _said("details", JSON),
)
AUDIT: Final = Table(
    "audit",
    METADATA,
    _key("sequence", BigInteger),
    _said("at_ms", BigInteger),
    _said("who", Words),
    _said("what", Words),
    _said("subject", Words),
    _said("details", String),
    _said("previous", String),
    _said("digest", String),
)
_INSERT: Final[Mapping[str, type[sqlite.Insert] | type[postgresql.Insert]]] = {
    "sqlite": sqlite.Insert,
    "postgresql": postgresql.Insert,
}


def upsert(
    connection: Connection,
    table: Table,
    rows: Iterable[Mapping[str, Any]],
    *,
    keep: Iterable[str] = (),
) -> None:
    """Write whole rows, in place of those that have the same key.

    Args:
        connection: in a writing transaction.
        table: one of these.
        rows: a value for every column.
        keep: columns that stay as they were.
    """
    written = list(rows)
    if not written:
        return
    keys = [column.name for column in table.primary_key]
    insert = _INSERT[connection.dialect.name](table)
    kept = {*keys, *keep}
    changes = {
        column.name: insert.excluded[column.name]
        for column in table.columns
        if column.name not in kept
    }
    connection.execute(
        insert.on_conflict_do_update(index_elements=keys, set_=changes), written
    )
