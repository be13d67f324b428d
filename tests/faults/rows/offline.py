"""Two days without the cloud: what expired meanwhile says so, the rest drains in order."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Final

from lifecycle.journal import Event
from tests.faults.device import SPILLED
from tests.faults.history import read
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

DAY_S: Final = 86_400.0
CLASSES: Final = ("hi", "norm", "bulk")
EXPIRES_AFTER_DAYS: Final = 1.0
LIVES_FOR_DAYS: Final = (5.0, 3.0, 6.0, 4.0)


async def offline_for_two_days(stage: Stage) -> None:
    clock = WarpedClock()
    gate, url = gate_of(stage)
    mosquitto, device = await devices_side(stage)
    async with (
        agent_inside(stage, mosquitto, clock, cloud_url=url) as agent,
        local_stream(stage, mosquitto),
        worker_inside(stage, clock),
    ):
        urgency: dict[str, tuple[int, float]] = {}
        doomed: set[str] = set()
        async with stage.fault("two days without the cloud"):
            # The last comes first, so that order of arrival is not what is seen.
            for priority, days in itertools.product(
                reversed(CLASSES), (EXPIRES_AFTER_DAYS, *LIVES_FOR_DAYS)
            ):
                kind = replace(SPILLED, deadline_s=days * DAY_S, priority=priority)
                for id_ in await device.offer_many(stage.n(40), kind):
                    urgency[id_] = (CLASSES.index(priority), days)
                    if days == EXPIRES_AFTER_DAYS:
                        doomed.add(id_)
            await stage.until(lambda: device.heard_accepted >= urgency.keys())
            clock.advance(2 * DAY_S)
            await stage.until(lambda: device.ended.keys() >= doomed)
            assert device.ended == dict.fromkeys(doomed, "expired"), "expired offline"
            waiting = (await agent.status())["outbox"]["open"]
            assert waiting == len(urgency) - len(doomed)
        await gate.open()
        await stage.until(lambda: not device.open, 60.0)
        await gate.shut()
    answered = {id_ for id_, status in device.ended.items() if status == "answered"}
    assert answered == urgency.keys() - doomed
    sent = first_sends(stage)
    assert not doomed & set(sent), "what had expired was sent"
    in_order = [urgency[id_] for id_ in sent if id_ in urgency]
    assert in_order == sorted(in_order), "not by class and deadline"


def first_sends(stage: Stage) -> list[str]:
    """Ids in the order in which the agent sent them first."""
    sends = [line.id for line in read(stage.histories) if line.event == Event.SENDING]
    return list(dict.fromkeys(sends))


ROWS: tuple[Row, ...] = (
    Row(
        name="offline-two-days",
        fault="no cloud for two days, by a simulated clock",
        must_hold="expired ones say so; the rest drain by class, then deadline",
        run=offline_for_two_days,
    ),
)
