"""What an agent says of itself over HTTP."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from broker.ports import free_port
from edge_agent.app import Agent
from edge_agent.settings import AgentSettings
from lifecycle.pages import CannotListen
from tests.integration.edge_agent.edge import SHIRT, device, tiny
from tests.integration.pages import get, metrics, sample
from tests.waiting import until

pytestmark = pytest.mark.integration


async def test_an_agent_without_its_cloud_is_ready_and_counts(short_tmp: Path) -> None:
    http, mqtt = free_port(), free_port()
    settings = AgentSettings(
        agent_id="a",
        state_dir=short_tmp / "agent",
        cloud_url=f"mqtt://127.0.0.1:{free_port()}",
        embedded_port=mqtt,
        bundles=[tiny(short_tmp / "tiny", threshold=0.0)],
        http_port=http,
    )
    async with Agent(settings), device(f"mqtt://127.0.0.1:{mqtt}") as cam:
        async with asyncio.timeout(10):
            # Before it listens, its broker has nobody to give a request to.
            while (await get(http, "/readyz"))[0] != 200:  # noqa: ASYNC110 - HTTP tells no event
                await asyncio.sleep(0.02)
        await cam.send("fashion", SHIRT)
        assert (await cam.next_answer(0))["status"] == "answered"
        await cam.send("fashion", b"nonsense")
        assert (await cam.next_answer(1))["status"] == "refused"
        assert await get(http, "/healthz") == (200, "alive\n")
        assert await get(http, "/readyz") == (200, "ready\n")
        said = await metrics(http)
    assert said[sample("overspill_agent_ready")] == 1
    assert said[sample("overspill_agent_answered_edge_total")] == 1
    assert said[sample("overspill_agent_ingress_bad_total")] == 1
    assert said[sample("overspill_agent_link_up", link="cloud")] == 0
    assert said[sample("overspill_agent_link_up", link="devices")] == 1
    assert said[sample("overspill_agent_outbox_open")] == 0
    assert all(re.fullmatch(r"(overspill_agent|process)_\w+", name) for name, _ in said)


async def test_an_agent_whose_devices_are_not_heard_is_alive_and_not_ready(
    short_tmp: Path,
) -> None:
    http, nowhere = free_port(), free_port()
    settings = AgentSettings(
        agent_id="a",
        state_dir=short_tmp / "agent",
        local_url=f"mqtt://127.0.0.1:{nowhere}",
        http_port=http,
    )
    async with Agent(settings) as agent:
        await until(lambda: agent._status.why_not_ready() not in {None, "connecting"})
        status, why = await get(http, "/readyz")
        assert status == 503
        assert why.startswith("not ready: devices are not heard: ")
        assert (await get(http, "/healthz"))[0] == 200
        with pytest.raises(CannotListen):
            async with Agent(
                settings.model_copy(update={"state_dir": short_tmp / "other"})
            ):
                pass
