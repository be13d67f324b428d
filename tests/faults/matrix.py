"""Every row of `tests/faults/rows`, in the order of the table.

A module there has `ROWS`; nothing else has to know of it.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from tests.faults.row import Row


def _found() -> tuple[Row, ...]:
    names = sorted(path.stem for path in (Path(__file__).parent / "rows").glob("*.py"))
    modules = [importlib.import_module(f"tests.faults.rows.{name}") for name in names]
    return tuple(row for module in modules for row in module.ROWS)


ROWS: tuple[Row, ...] = _found()


def chosen(names: Sequence[str] = (), *, fast: bool = False) -> list[Row]:
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
