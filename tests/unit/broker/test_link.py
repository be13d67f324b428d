"""A link ends when it is told to, whatever the libraries below it do."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from broker import link
from broker.link import each_address, until_cancelled


async def test_a_cancellation_that_got_lost_is_given_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link, "CANCEL_AGAIN_S", 0.01)
    lost = 0

    async def work() -> None:
        # As Python 3.11's wait_for does when its awaitable is done in the same turn.
        nonlocal lost
        for _ in range(3):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.get_running_loop().create_future()
            lost += 1
        await asyncio.get_running_loop().create_future()

    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(until_cancelled(work()))
        await asyncio.sleep(0)
        task.cancel()
    assert task.cancelled()
    assert lost == 3


async def test_work_may_close_in_good_order() -> None:
    closed = False

    async def work() -> None:
        nonlocal closed
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0.01)
            closed = True

    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(until_cancelled(work()))
        await asyncio.sleep(0)
        task.cancel()
    assert task.cancelled()
    assert closed


async def test_an_error_of_the_work_is_raised() -> None:
    async def work() -> None:
        raise LookupError("a defect")

    with pytest.raises(ExceptionGroup) as caught:
        await until_cancelled(work())
    assert caught.group_contains(LookupError)


@pytest.mark.parametrize(
    ("url", "each"),
    [
        ("mqtt://h", ["mqtt://h"]),
        ("mqtt://u:p@a:1,b:2", ["mqtt://u:p@a:1", "mqtt://u:p@b:2"]),
        (
            "amqp://u,v:p@a,[::1]:2/x,y?z=1",
            ["amqp://u,v:p@a/x,y?z=1", "amqp://u,v:p@[::1]:2/x,y?z=1"],
        ),
        ("h:1883", ["h:1883"]),
        ("", [""]),
    ],
)
def test_a_url_of_several_addresses_is_one_for_each(url: str, each: list[str]) -> None:
    assert each_address(url) == each
