"""The agent dies: at every boundary that a request crosses, and anywhere at all."""

from __future__ import annotations

import asyncio
import functools
import signal

from lifecycle.journal import Event
from tests.faults.row import Row
from tests.faults.stage import Stage

STEPS = (
    Event.ACCEPTING,
    Event.ACCEPTED,
    Event.SENDING,
    Event.SENT,
    Event.ENDING,
    Event.ENDED,
    Event.TELLING,
    Event.TOLD,
    Event.MARKED,
)
FAST = {Event.ACCEPTED, Event.ENDED, Event.TOLD}


async def killed_at(event: Event, stage: Stage) -> None:
    """Die once some are through, with the pool paused first, so that rows are accepted.

    Devices have heard `accepted` of those before, and are silent about them.
    """
    worker = await stage.worker("w1")
    worker.signal(signal.SIGSTOP)
    gateway = await stage.gateway(kill_at=f"{event}:{stage.n(20)}")
    for name in ("cam1", "cam2"):
        await stage.device(gateway, name)
    await stage.local_stream(gateway)
    stage.note_fault(f"agent dies at {event} begins")
    await stage.load(stage.n(20), rate=100)
    await stage.until(
        lambda: all(each.heard_accepted >= each.open.keys() for each in stage.devices)
    )
    worker.signal(signal.SIGCONT)
    await stage.load(stage.n(20), rate=100)
    await stage.until(lambda: gateway.restarts)
    stage.note_fault(f"agent dies at {event} ends")
    await stage.until_ended()


async def killed_at_random(stage: Stage) -> None:
    gateway = await stage.usual(devices=3)
    load = stage.background(stage.load(stage.n(400), rate=60))
    async with stage.fault("random kills"):
        for _ in range(stage.n(10)):
            # The fault itself: at any moment of its life.
            await asyncio.sleep(stage.random.uniform(0.05, 1.5))
            gateway.agent.signal(signal.SIGKILL)
            await stage.restarted(gateway)
    await load
    await stage.until_ended(120)


ROWS: tuple[Row, ...] = (
    *(
        Row(
            name=f"agent-killed-{event}",
            fault=f"kill -9 of the agent at `{event}`",
            must_hold="no accepted id lost, at most one outcome",
            run=functools.partial(killed_at, event),
            fast=event in FAST,
            most_gap_s=15.0,
        )
        for event in STEPS
    ),
    Row(
        name="agent-killed-randomly",
        fault="kill -9 of the agent at random times, again and again",
        must_hold="no accepted id lost, at most one outcome",
        run=killed_at_random,
        most_gap_s=20.0,
        timeout_s=300.0,
    ),
)
