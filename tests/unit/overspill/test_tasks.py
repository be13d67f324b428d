"""Work side by side, and tidying up that is not left half done."""

from __future__ import annotations

import asyncio

import pytest

from overspill.tasks import alongside, to_the_end, together


class Broken(Exception):
    """Something failed."""


async def fail() -> None:
    raise Broken


async def for_ever() -> None:
    await asyncio.Event().wait()


async def test_one_failure_ends_the_others_and_is_raised_by_itself() -> None:
    with pytest.raises(Broken):
        await together(for_ever(), fail())


async def test_what_runs_beside_ends_with_the_main_work() -> None:
    async def main() -> int:
        await asyncio.sleep(0)
        return 7

    assert await alongside(main(), for_ever()) == 7


async def test_a_failure_beside_ends_the_main_work() -> None:
    with pytest.raises(Broken):
        await alongside(for_ever(), fail())


async def test_a_failure_of_the_main_work_is_raised_by_itself() -> None:
    with pytest.raises(Broken):
        await alongside(fail(), for_ever())


async def test_tidying_up_is_done_to_the_end_though_cancelled() -> None:
    begun, go, done = asyncio.Event(), asyncio.Event(), False

    async def tidy() -> None:
        nonlocal done
        begun.set()
        await go.wait()
        done = True

    async with asyncio.TaskGroup() as group:
        task = group.create_task(to_the_end(tidy()))
        await begun.wait()
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        go.set()

    assert done
    assert task.cancelled()


async def test_a_failure_while_tidying_up_is_raised() -> None:
    with pytest.raises(Broken):
        await to_the_end(fail())
