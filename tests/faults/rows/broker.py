"""RabbitMQ dies, restarts, stays away, or takes nothing more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from broker.node_files import DISK_LIMIT, MEMORY_LIMIT
from tests.faults.rabbitmqctl import rabbitmqctl
from tests.faults.row import Row
from tests.faults.stage import Gateway, Stage

ABSENT_S = 90.0
RATE = 20.0


async def through(
    stage: Stage,
    what: str,
    begin: Callable[[], Coroutine[Any, Any, object]],
    end: Callable[[], Coroutine[Any, Any, object]],
    away_s: float,
) -> None:
    """Load before, during and after; the outbox grows, and drains again."""
    gateway = await stage.usual()
    await stage.load(stage.n(50), rate=RATE * 4)
    async with stage.fault(what):
        async with asyncio.TaskGroup() as beside:
            beside.create_task(begin())
            beside.create_task(stage.load(stage.n(100), rate=RATE * 4))
        await _waits_in_the_outbox(stage, gateway)
        await asyncio.sleep(away_s * stage.scale)  # the fault itself
        await end()
    await stage.load(stage.n(50), rate=RATE * 4)
    await stage.until_ended(120)


async def _waits_in_the_outbox(stage: Stage, gateway: Gateway) -> None:
    await stage.load(5)
    accepted = await stage.until_status(gateway, lambda now: now["outbox"]["open"] >= 5)
    assert accepted["local"]["up"]


async def killed(stage: Stage) -> None:
    node = stage.node
    await through(stage, "broker killed", node.kill, node.start, 1.0)


async def absent(stage: Stage) -> None:
    node = stage.node
    await through(stage, "broker absent", node.stop, node.start, ABSENT_S)


async def restarted(stage: Stage) -> None:
    await stage.usual()
    async with asyncio.TaskGroup() as beside:
        beside.create_task(stage.load(stage.n(400), rate=RATE))
        async with stage.fault("broker restarted"):
            await stage.node.restart()
    await stage.until_ended(120)


async def memory_alarm(stage: Stage) -> None:
    def limit(size: str) -> Callable[[], Coroutine[Any, Any, object]]:
        return lambda: rabbitmqctl(
            stage.node, "set_vm_memory_high_watermark", "absolute", size
        )

    await through(stage, "memory alarm", limit("1MB"), limit(MEMORY_LIMIT), 20.0)


async def disk_alarm(stage: Stage) -> None:
    def limit(size: str) -> Callable[[], Coroutine[Any, Any, object]]:
        return lambda: rabbitmqctl(stage.node, "set_disk_free_limit", size)

    await through(
        stage, "disk alarm", limit(str(900 * 10**12)), limit(DISK_LIMIT), 20.0
    )


HOLDS = "the outbox grows, local answers go on, everything drains after"

ROWS: tuple[Row, ...] = (
    Row(
        "broker-killed",
        "kill -9 of RabbitMQ under load, then started again",
        HOLDS,
        killed,
        fast=True,
    ),
    Row(
        "broker-restarted",
        "RabbitMQ stopped in good order and started again under load",
        HOLDS,
        restarted,
    ),
    Row(
        "broker-absent",
        f"RabbitMQ away for {ABSENT_S:g} s",
        HOLDS,
        absent,
        timeout_s=300.0,
    ),
    Row(
        "broker-memory-alarm",
        "memory limit under what RabbitMQ uses, for 20 s",
        HOLDS,
        memory_alarm,
        timeout_s=240.0,
    ),
    Row(
        "broker-disk-alarm",
        "disk limit above what is free, for 20 s",
        HOLDS,
        disk_alarm,
        timeout_s=240.0,
    ),
)
