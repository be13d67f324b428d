"""A worker dies, stands still, or meets the request that breaks its model."""

from __future__ import annotations

import asyncio
import functools
import signal

from lifecycle.journal import Event
from tests.faults.device import FRAGILE
from tests.faults.row import Row
from tests.faults.stage import Stage

# RabbitMQ gives a silent consumer up after about three heartbeats of 10 s.
STOPPED_S = 45.0


async def killed(stage: Stage) -> None:
    await stage.usual()
    second = await stage.worker("w2")
    async with asyncio.TaskGroup() as beside:
        beside.create_task(stage.load(stage.n(600), rate=60))
        async with stage.fault("worker kills"):
            for _ in range(stage.n(5)):
                # The fault itself: at any moment of its life, warm or not.
                await asyncio.sleep(stage.random.uniform(0.2, 1.0))
                await second.kill()
                await second.start()
    await stage.until_ended()


async def killed_at(event: Event, stage: Stage) -> None:
    """The only worker dies there, so that what it held comes back to its successor."""
    gateway = await stage.gateway()
    for name in ("cam1", "cam2"):
        await stage.device(gateway, name)
    await stage.local_stream(gateway)
    worker = await stage.worker("w1", kill_at=f"{event}:{stage.n(20)}")
    async with stage.fault(f"worker dies at {event}"):
        await stage.load(stage.n(40), rate=100)
        assert await worker.ended() == -signal.SIGKILL
    await worker.start()
    await stage.until_ended()


async def stopped(stage: Stage) -> None:
    await stage.usual()
    second = await stage.worker("w2")
    async with asyncio.TaskGroup() as beside:
        beside.create_task(stage.load(stage.n(300), rate=30))
        async with stage.fault("worker stopped"):
            await stage.until(lambda: any(each.ended for each in stage.devices))
            second.signal(signal.SIGSTOP)
            await asyncio.sleep(STOPPED_S * stage.scale)  # the fault itself
            second.signal(signal.SIGCONT)
    await stage.until_ended(120)


async def poison(stage: Stage) -> None:
    await stage.worker("w1", models=stage.models("copy", "fragile"))
    gateway = await stage.gateway()
    for name in ("cam1", "cam2"):
        await stage.device(gateway, name)
    await stage.local_stream(gateway)
    one = stage.devices[0]
    async with asyncio.TaskGroup() as beside, stage.fault("poison"):
        beside.create_task(stage.load(stage.n(40), FRAGILE, rate=100))
        await stage.until(lambda: all(each.open for each in stage.devices))
        bad = [await one.offer(FRAGILE, poison=True) for _ in range(2)]
    await stage.until_ended(120)
    ended = {id_: how for each in stage.devices for id_, how in each.ended.items()}
    assert {ended.pop(id_) for id_ in bad} == {"failed"}, "the poison was not failed"
    assert set(ended.values()) == {"answered"}, "a neighbour was not answered"


ROWS: tuple[Row, ...] = (
    Row(
        "worker-killed",
        "kill -9 of one of two workers, again and again",
        "one outcome each",
        killed,
    ),
    *(
        Row(
            f"worker-killed-{event}",
            f"kill -9 of the only worker at `{event}`",
            "one outcome each",
            functools.partial(killed_at, event),
            fast=event is Event.SEEN,
        )
        for event in (Event.SEEN, Event.PUBLISHED)
    ),
    Row(
        "worker-stopped",
        f"SIGSTOP of one of two workers for {STOPPED_S:g} s, then SIGCONT",
        "one outcome each",
        stopped,
    ),
    Row(
        "worker-poison",
        "requests that make the model's process abort, among others",
        "the poison is failed, its neighbours are answered",
        poison,
    ),
)
