"""A loop of a real agent fails: devices are answered all the while, and it comes back."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from broker.ports import free_port
from edge_agent.settings import AgentSettings
from lifecycle.journal import Event
from tests.integration.edge_agent.edge import SHIRT, Device, device, serving, tiny

pytestmark = pytest.mark.integration

IMAGE = base64.b64encode(SHIRT).decode()


class Breaks:
    """A journal that raises, the first few times that a device has been told."""

    def __init__(self, times: int) -> None:
        self.left = times

    def note(self, event: Event, device: str, id_: str, detail: str = "") -> None:
        if event is Event.TOLD and self.left:
            self.left -= 1
            raise RuntimeError(f"{device} cannot be told of {id_} {detail}")


async def test_a_loop_that_fails_comes_back_and_the_agent_goes_on_answering(
    mosquitto: str, short_tmp: Path
) -> None:
    settings = AgentSettings(
        agent_id="agent-1",
        state_dir=short_tmp / "agent",
        cloud_url=f"mqtt://127.0.0.1:{free_port()}",
        local_url=mosquitto,
        bundles=[tiny(short_tmp / "sure", threshold=0.0)],
        disk_reserve_bytes=0,
    )
    journal = Breaks(times=3)
    async with (
        serving(settings, cloud=False, journal=journal) as agent,
        device(mosquitto) as cam,
    ):
        late = {"id": "late", "deadline_ms": 50, "inputs": {"x": [1, 2]}}
        await cam.send("nobody", late)
        answers = 0
        # Told again until its loop has survived to mark it.
        while not _ended_and_told(status := await agent.status()):
            answer = await answered(cam, f"s{answers}")
            assert answer["source"] == "edge"
            answers += 1
    assert answers
    heard = [each["status"] for each in cam.of("late") if each["final"]]
    assert heard == ["expired"] * 4
    failures = status["loops"]["failures"]
    assert failures.pop("outcomes") == status["counters"]["loop_failures"] == 3
    assert set(failures.values()) == {0}
    assert "cam1 cannot be told of late" in status["loops"]["last_error"]


async def answered(cam: Device, id_: str) -> dict[str, Any]:
    await cam.send("fashion", {"id": id_, "image": IMAGE})
    return await cam.final(id_)


def _ended_and_told(status: dict[str, Any]) -> bool:
    outbox = status["outbox"]
    return bool(outbox["expired"]) and not outbox["untold"]
