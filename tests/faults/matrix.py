"""Every row, in the order of the table."""

from __future__ import annotations

from tests.faults.row import Row
from tests.faults.rows import (
    agent,
    broker,
    cluster,
    devices,
    fleet,
    network,
    queues,
    worker,
)

ROWS: tuple[Row, ...] = (
    *agent.ROWS,
    *broker.ROWS,
    *worker.ROWS,
    *devices.ROWS,
    *network.ROWS,
    *cluster.ROWS,
    *queues.ROWS,
    *fleet.ROWS,
)


def chosen(names: list[str], *, fast: bool = False) -> list[Row]:
    """The rows of these names or beginnings of names; all when none is named.

    Raises:
        KeyError: a name that begins no row.
    """
    if unknown := [
        name for name in names if not any(row.name.startswith(name) for row in ROWS)
    ]:
        raise KeyError(f"no row is called {unknown[0]!r}")
    return [
        row
        for row in ROWS
        if (not names or row.name.startswith(tuple(names))) and (row.fast or not fast)
    ]
