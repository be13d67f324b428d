"""A wall clock that jumps by a year, in an agent's life and between two lives."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog

from broker.codec import encode
from broker.messages import Result, Status
from broker.ports import free_port
from edge_agent.app import Agent
from edge_agent.settings import AgentSettings
from lifecycle.clock import FakeClock
from tests.integration.edge_agent.edge import until_status

YEAR_S = 365 * 86_400.0
HOUR_S = 3_600.0
JUMPS = pytest.mark.parametrize("jump_s", [YEAR_S, -YEAR_S], ids=["on", "back"])


@pytest.fixture
def settings(short_tmp: Path) -> AgentSettings:
    return AgentSettings(
        agent_id="clocks",
        state_dir=short_tmp / "agent",
        cloud_url=f"mqtt://127.0.0.1:{free_port()}",
        local=False,
        disk_reserve_bytes=0,
    )


async def leave_open(agent: Agent, id_: str) -> dict[str, Any]:
    """A spill that has an hour."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.1):
            inputs = {"payload": np.zeros((1, 4), np.uint8)}
            await agent.infer("copy", inputs, id=id_, deadline_s=HOUR_S)
    return await until_status(agent, lambda status: status["outbox"]["open"])


async def nothing_expires(agent: Agent, age_s: float) -> None:
    # An expired one is ended as soon as a look is due, which a fresh spill makes so.
    status = await leave_open(agent, f"fresh-{age_s:.0f}")
    for _ in range(5):
        await asyncio.sleep(0.01)
        status = await agent.status()
        assert status["outbox"]["expired"] == 0
    assert status["outbox"]["oldest_s"] == pytest.approx(age_s)


@JUMPS
async def test_a_deadline_holds_over_a_restart_while_the_wall_clock_jumps(
    settings: AgentSettings, jump_s: float
) -> None:
    clock = FakeClock(monotonic_s=1000.0)
    async with Agent(settings, clock=clock, boot_id="this") as agent:
        await leave_open(agent, "old")
        clock.jump_wall(jump_s)
        await nothing_expires(agent, 0.0)
    clock.advance(5.0)
    clock.jump_wall(jump_s)
    async with Agent(settings, clock=clock, boot_id="this") as agent:
        await nothing_expires(agent, 5.0)
        clock.advance(HOUR_S)
        await until_status(agent, lambda status: not status["outbox"]["open"])


async def test_a_deadline_does_not_come_later_because_a_reboot_set_the_clock_back(
    settings: AgentSettings,
) -> None:
    clock = FakeClock(monotonic_s=1000.0)
    async with Agent(settings, clock=clock, boot_id="this") as agent:
        await leave_open(agent, "old")
        clock.advance(HOUR_S / 2)
    clock.jump_wall(-YEAR_S)
    async with Agent(settings, clock=clock, boot_id="next") as agent:
        await nothing_expires(agent, HOUR_S / 2)
        clock.advance(HOUR_S / 2 + 1)
        await until_status(agent, lambda status: status["outbox"]["expired"])


@pytest.mark.parametrize("damage", [b"", b"\0" * 512, b'{"agent_ms": 1}'])
async def test_a_damaged_stamp_costs_a_warning(
    settings: AgentSettings, damage: bytes
) -> None:
    settings.state_dir.mkdir()
    stamp = settings.state_dir / "time.json"
    stamp.write_bytes(damage)
    clock = FakeClock()
    with structlog.testing.capture_logs() as logs:
        async with Agent(settings, clock=clock, boot_id="this") as agent:
            assert agent._time.now_ms() == clock.wall_ms()
    warned = [each for each in logs if each["event"] == "time_stamp_unreadable"]
    assert len(warned) == 1
    assert stamp.read_bytes() != damage


@JUMPS
async def test_a_pool_whose_clock_jumps_is_followed_by_the_next_request(
    settings: AgentSettings, jump_s: float
) -> None:
    clock = FakeClock()
    async with Agent(settings, clock=clock, boot_id="this") as agent:
        await leave_open(agent, "first")
        agent._hear_cloud(*result("first", clock.wall_ms()))
        assert agent._requests.uplink.pool_offset_ms == pytest.approx(0.0, abs=1.0)
        await leave_open(agent, "second")
        agent._hear_cloud(*result("second", clock.wall_ms() + jump_s * 1000))
        assert agent._requests.uplink.pool_offset_ms == pytest.approx(
            jump_s * 1000, abs=1.0
        )
    # What was learned is not forgotten.
    async with Agent(settings, clock=clock, boot_id="this") as agent:
        assert agent._requests.uplink.pool_offset_ms == pytest.approx(
            jump_s * 1000, abs=1.0
        )


def result(id_: str, server_time_ms: float) -> tuple[str, bytes]:
    made = Result(
        id=id_,
        device="clocks",
        model="copy",
        status=Status.OK,
        server_time_ms=round(server_time_ms),
    )
    return "e1/clocks/dn/res", encode(made)
