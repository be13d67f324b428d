"""Clocks that jump by a year, either way: nothing expires early, and offsets are relearned.

The wall clock of the agent, and of the pool, while both run and while the agent is
down. Deadlines are minutes, so that a clock that is believed would end every request.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final, TypeAlias

from edge_agent.app import Agent
from tests.faults.device import SPILLED, Device
from tests.faults.row import Row
from tests.faults.stage import Stage
from tests.faults.warped import (
    WarpedClock,
    agent_inside,
    devices_side,
    gate_of,
    local_stream,
    worker_inside,
)

YEAR_S: Final = 365 * 86_400.0
KIND: Final = replace(SPILLED, deadline_s=120.0)
# Half of the least round trip to the pool that counts as a jump, and much of a year.
OFFSET_SLACK_MS: Final = 2_000.0
# Longer than between two looks at deadlines: nothing tells of one that found none.
LOOKED_S: Final = 1.5


async def agents_clock_jumps(stage: Stage, seconds: float) -> None:
    """While it runs, with requests under way."""
    clock, pool = WarpedClock(), WarpedClock()
    gate, url = gate_of(stage)
    await gate.open()
    mosquitto, device = await devices_side(stage)
    async with (
        worker_inside(stage, pool),
        agent_inside(stage, mosquitto, clock, cloud_url=url) as agent,
        local_stream(stage, mosquitto),
    ):
        await _answered(stage, device)
        async with stage.fault(f"the agent's clock jumps by {seconds:+.0f} s"):
            await gate.shut()
            waiting = await _offered_offline(stage, device)
            clock.jump_wall(seconds)
            await asyncio.sleep(LOOKED_S)
            assert not device.ended.keys() & set(waiting), "expired early"
            await gate.open()
        await _all_answered(stage, device)
        await _answered(stage, device)
        _check_offset(agent, 0.0)
    await gate.shut()


async def pools_clock_jumps(stage: Stage, seconds: float) -> None:
    """While both run; and back."""
    clock, pool = WarpedClock(), WarpedClock()
    mosquitto, device = await devices_side(stage)
    async with (
        worker_inside(stage, pool),
        agent_inside(stage, mosquitto, clock) as agent,
        local_stream(stage, mosquitto),
    ):
        await _answered(stage, device)
        async with stage.fault(f"the pool's clock jumps by {seconds:+.0f} s"):
            pool.jump_wall(seconds)
            await _answered(stage, device)
            _check_offset(agent, seconds * 1000.0)
            pool.jump_wall(-seconds)
            await _answered(stage, device)
        _check_offset(agent, 0.0)


async def clock_jumps_while_down(stage: Stage, seconds: float) -> None:
    """Accepted, stopped, another year by the wall clock, started: still in time."""
    clock, pool = WarpedClock(), WarpedClock()
    gate, url = gate_of(stage)
    mosquitto, device = await devices_side(stage)
    async with worker_inside(stage, pool):
        async with agent_inside(stage, mosquitto, clock, cloud_url=url):
            waiting = await _offered_offline(stage, device)
            short = replace(SPILLED, deadline_s=8.0)
            [dying] = await device.offer_many(1, short)
            await stage.until(lambda: dying in device.heard_accepted)
        async with stage.fault(f"the clock jumps by {seconds:+.0f} s, agent down"):
            clock.jump_wall(seconds)
        async with agent_inside(stage, mosquitto, clock, cloud_url=url):
            await asyncio.sleep(LOOKED_S)
            assert not device.ended, "expired early"
            # A deadline is still one: by time that has passed, not by the wall clock.
            clock.advance(10.0)
            pool.advance(10.0)
            await stage.until(lambda: dying in device.ended)
            assert device.ended == {dying: "expired"}
            await gate.open()
            await stage.until(lambda: not device.open)
            assert {device.ended[id_] for id_ in waiting} == {"answered"}
    await gate.shut()


async def _answered(stage: Stage, device: Device) -> None:
    await device.offer_many(stage.n(50), KIND)
    await _all_answered(stage, device)


async def _all_answered(stage: Stage, device: Device) -> None:
    await stage.until(lambda: not device.open)
    assert set(device.ended.values()) == {"answered"}, device.ended


async def _offered_offline(stage: Stage, device: Device) -> list[str]:
    ids = await device.offer_many(stage.n(50), KIND)
    await stage.until(lambda: device.heard_accepted >= set(ids))
    return ids


def _check_offset(agent: Agent, expected_ms: float) -> None:
    found = agent._requests.uplink.pool_offset_ms
    assert abs(found - expected_ms) < OFFSET_SLACK_MS, f"{found} ms, not relearned"


Jump: TypeAlias = Callable[..., Awaitable[None]]
CASES: Final[tuple[tuple[str, str, Jump], ...]] = (
    ("agent", "the agent's wall clock jumps while it runs", agents_clock_jumps),
    ("pool", "the pool's wall clock jumps while it runs", pools_clock_jumps),
    ("restart", "the wall clock jumps while the agent is down", clock_jumps_while_down),
)

ROWS: tuple[Row, ...] = tuple(
    Row(
        name=f"clock-{name}-{way}",
        fault=f"{fault}, by {years:+d} year",
        must_hold="nothing expires early; the offset is relearned",
        run=functools.partial(jump, seconds=years * YEAR_S),
    )
    for name, fault, jump in CASES
    for way, years in (("forward", 1), ("back", -1))
)
