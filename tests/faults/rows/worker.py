"""Rows to come."""

from tests.faults.row import Row

ROWS: tuple[Row, ...] = ()
