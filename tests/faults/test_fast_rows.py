"""The cheap rows of the matrix, small: real processes, one private RabbitMQ for all."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.node import Node
from tests.faults.matrix import chosen
from tests.faults.row import Row
from tests.faults.runner import run_row
from tests.faults.stage import new_node

# Each starts an agent, a worker and a Mosquitto; the first also RabbitMQ.
pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(120)]

SCALE = 0.15


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """A RabbitMQ that rows may kill."""
    folder = Path(tempfile.mkdtemp(prefix="f"))
    made = new_node(folder / "rabbit")
    asyncio.run(made.start())
    yield made
    asyncio.run(made.kill())
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("row", chosen(fast=True), ids=lambda row: str(row.name))
async def test_what_must_hold_holds(row: Row, node: Node) -> None:
    ran = await run_row(row, node, scale=SCALE)
    assert ran.good, "\n".join(ran.problems)
