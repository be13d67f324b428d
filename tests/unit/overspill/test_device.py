"""The device's part of the bargain: resend what was not heard of, wait for the rest."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
import pytest

from broker.link import LinkDown
from lifecycle.clock import SystemClock
from overspill.demo.device import Device, Patience, Stage
from overspill.demo.history import Asked, read
from overspill.demo.images import LabelledImages

IMAGES = LabelledImages(np.zeros((4, 28, 28), np.uint8), np.arange(4))
SHORT = Patience(resend_after_s=0.02, give_up_after_s=0.3, linger_s=0.0)
LONG = Patience(give_up_after_s=5.0, linger_s=0.0)

Agent = Callable[[dict[str, Any], int], list[dict[str, Any]]]


class Road:
    """A link whose other end is a function: request and how often seen, to replies."""

    def __init__(self, agent: Agent) -> None:
        self.seen: dict[str, int] = {}
        self.asked: list[dict[str, Any]] = []
        self.down = 0
        self._agent = agent
        self.device: Device | None = None

    async def publish(self, topic: str, payload: bytes) -> None:
        assert topic == "infer/cam1/fashion"
        if self.down:
            self.down -= 1
            raise LinkDown("no link")
        request = msgpack.unpackb(payload)
        self.asked.append(request)
        count = self.seen[request["id"]] = self.seen.get(request["id"], 0) + 1
        for reply in self._agent(request, count):
            assert self.device is not None
            self.device.on_message("answer/cam1", msgpack.packb(reply))


def answer(request: dict[str, Any], **fields: Any) -> dict[str, Any]:
    said = {"status": "answered", "source": "edge", "final": True, "version": "1"}
    return {"id": request["id"], **said, **fields}


def accepted(request: dict[str, Any]) -> dict[str, Any]:
    return answer(request, status="accepted", source=None, final=False)


async def told(road: Road, *stages: Stage, patience: Patience = SHORT) -> list[Asked]:
    """Let a device carry out stages, and read its history."""
    history = io.StringIO()
    road.device = device = Device(
        "cam1",
        "fashion",
        IMAGES,
        history=history,
        clock=SystemClock(),
        patience=patience,
    )
    commands: asyncio.Queue[Stage | None] = asyncio.Queue()
    for stage in stages:
        commands.put_nowait(stage)
    commands.put_nowait(None)
    await device.run(road, commands)
    return read("cam1", history.getvalue().splitlines())


async def test_an_answer_ends_a_request_at_once() -> None:
    road = Road(lambda request, _: [answer(request)])

    found = await told(road, Stage("first", (0, 1, 2)))

    assert [each.index for each in found] == [0, 1, 2]
    assert [each.truth for each in found] == [0, 1, 2]
    assert all(each.outcome is not None and each.attempts == 1 for each in found)


async def test_what_nothing_was_heard_of_is_sent_again_under_its_id() -> None:
    road = Road(lambda request, count: [answer(request)] if count == 3 else [])

    (found,) = await told(road, Stage("first", (0,)))

    assert found.attempts == 3
    assert len(found.finals) == 1


async def test_what_was_accepted_is_waited_for_and_not_sent_again() -> None:
    road = Road(lambda request, _: [accepted(request)])

    (found,) = await told(road, Stage("first", (0,)))

    assert road.seen[found.id] == 1
    assert found.outcome is None


async def test_a_request_without_an_end_is_given_up() -> None:
    road = Road(lambda _request, _count: [])

    (found,) = await told(road, Stage("first", (0,)))

    assert found.outcome is None
    assert found.attempts > 3


async def test_a_second_answer_is_written_down_too() -> None:
    road = Road(lambda request, _: [answer(request), answer(request)])

    (found,) = await told(road, Stage("first", (0,)))

    assert len(found.finals) == 2


async def test_a_lost_link_costs_time_and_no_request() -> None:
    road = Road(lambda request, _: [answer(request)])
    road.down = 1

    (found,) = await told(road, Stage("first", (0,)), patience=LONG)

    assert found.outcome is not None


@pytest.mark.parametrize("window", [1, 2, 3])
async def test_no_more_are_open_than_the_window_allows(window: int) -> None:
    waiting: list[dict[str, Any]] = []
    most = 0

    def slow(request: dict[str, Any], _count: int) -> list[dict[str, Any]]:
        nonlocal most
        waiting.append(request)
        most = max(most, len(waiting))
        if len(waiting) < window:
            return []
        done = [answer(each) for each in waiting]
        waiting.clear()
        return done

    # Six divides by each window, so nothing is left waiting at the end.
    found = await told(
        Road(slow),
        Stage("first", (0, 1, 2, 3, 0, 1), window=window),
        patience=LONG,
    )

    assert most == window
    assert all(each.outcome is not None for each in found)


async def test_an_endless_stage_ends_with_the_next_command() -> None:
    road = Road(lambda request, _: [answer(request)])

    found = await told(
        road, Stage("swap", (0, 1), endless=True), Stage("second", (2, 3))
    )

    assert [each.index for each in found if each.stage == "second"] == [2, 3]


async def test_the_cloud_is_forced_only_where_the_stage_says_so() -> None:
    road = Road(lambda request, _: [answer(request)])

    await told(road, Stage("first", (0,)), Stage("cloud", (0,), force=True))

    plain, forced = road.asked
    assert "spill" not in plain
    assert (forced["spill"], forced["class"]) == (True, "bulk")
