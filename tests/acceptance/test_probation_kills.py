"""A version that ends its agent again and again, with a real process each time."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from broker.messages import UpdatePolicy
from edge_agent.adapters.model_store import ModelStore
from edge_agent.core.slots import State
from tests.acceptance.processes import agent
from tests.integration.edge_agent.edge import on_probation

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(60)]


@pytest.fixture
def swapped(short_tmp: Path) -> None:
    """Version 2 was swapped in by a process that did not outlive it."""
    store, slots = on_probation(short_tmp, UpdatePolicy(probation_s=3600.0))
    store.save(slots)


@pytest.mark.usefixtures("swapped")
async def test_an_agent_that_is_killed_on_probation_comes_back_with_the_version_before(
    short_tmp: Path,
) -> None:
    async with agent(short_tmp, local=False, disk_reserve_bytes=0) as daemon:
        for _ in range(2):
            await daemon.end(signal.SIGKILL)
            await daemon.start()
        said = [
            json.loads(line)
            for line in daemon.log.read_text().splitlines()
            if line.startswith("{")
        ]
    served = [each["models"]["fashion"] for each in said if each["event"] == "ready"]
    assert served == ["2", "2", "1"]
    slots = ModelStore(short_tmp / "agent" / "models").slots()["fashion"]
    assert (slots.active, slots.state) == ("1", State.RETURNED)
    assert "ended 3 times" in (slots.reason or "")
