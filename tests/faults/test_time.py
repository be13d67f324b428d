"""Clocks that jump, and two days without the cloud, by the row that `make faults` runs."""

from __future__ import annotations

import pytest

from broker.node import Node
from tests.faults.row import Row
from tests.faults.rows import clocks, offline
from tests.faults.runner import run_row


@pytest.mark.integration
@pytest.mark.parametrize("row", [*offline.ROWS, *clocks.ROWS], ids=lambda row: row.name)
async def test_time_does_no_harm(row: Row, rabbit: Node) -> None:
    ran = await run_row(row, rabbit, scale=0.1)
    assert ran.problems == []
