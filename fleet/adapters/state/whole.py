"""All tables at once, row by row: for a copy of the whole state into another database."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Table, func, insert, select

from fleet.adapters.state.tables import METADATA
from fleet.core.audit import canonical

ROWS_AT_ONCE: Final = 1000
TABLES: Final[Sequence[Table]] = METADATA.sorted_tables

Row = dict[str, Any]


class WholePages:
    """The part of a `Ledger` about everything in it."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def take_time(self) -> None:
        """Let this transaction wait for what is done elsewhere, however long."""
        if self._connection.dialect.name == "postgresql":
            self._connection.exec_driver_sql(
                "SET LOCAL idle_in_transaction_session_timeout = 0"
            )

    def row_counts(self) -> dict[str, int]:
        """How many rows each table has, by its name."""
        return {
            table.name: self._connection.execute(
                select(func.count()).select_from(table)
            ).scalar_one()
            for table in TABLES
        }

    def rows(self, table: Table) -> Iterator[list[Row]]:
        """Every row of a table in no order, some at a time, in bounded memory."""
        found = self._connection.execution_options(yield_per=ROWS_AT_ONCE).execute(
            select(table)
        )
        for some in found.mappings().partitions():
            yield [dict(row) for row in some]

    def fill(self, table: Table, rows: Sequence[Row]) -> None:
        """Write rows as they are into a table that has none of them."""
        if rows:
            self._connection.execute(insert(table), rows)


class Fingerprint:
    """What a table holds, in whatever order its rows come: equal for equal contents."""

    def __init__(self) -> None:
        self._sum = 0
        self.rows = 0

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take in some rows."""
        for row in rows:
            digest = hashlib.sha256(canonical(dict(row)).encode()).digest()
            self._sum = (self._sum + int.from_bytes(digest)) % 2**256
        self.rows += len(rows)

    @property
    def value(self) -> tuple[int, int]:
        """To be compared."""
        return self.rows, self._sum
