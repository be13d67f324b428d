"""A link ends when it is told to, whatever the libraries below it do."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

from broker.backoff import Backoff
from broker.link import Standing


def _standing() -> Standing:
    return Standing("a link", None, Backoff())


async def _swallow_cancellation() -> None:
    # As Python 3.11's wait_for does when its awaitable is done in the same turn.
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.get_running_loop().create_future()


async def _ends_when_cancelled(run: Coroutine[Any, Any, None]) -> None:
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(run)
        await asyncio.sleep(0)
        task.cancel()
    assert task.cancelled()


async def test_a_cancellation_lost_before_a_retry_ends_the_link() -> None:
    standing = _standing()

    async def run() -> None:
        await _swallow_cancellation()
        await standing.pause("refused")

    await _ends_when_cancelled(run())


async def test_a_cancellation_lost_while_connecting_ends_the_link() -> None:
    standing = _standing()

    async def run() -> None:
        await _swallow_cancellation()
        standing.rise()

    await _ends_when_cancelled(run())
    assert not standing.up


async def test_a_link_that_nobody_cancelled_rises_and_pauses() -> None:
    standing = _standing()
    standing.rise()
    assert standing.up
    standing.fall()
    await standing.pause("refused")
    assert standing.last_error == "refused"
