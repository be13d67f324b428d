from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import structlog

from lifecycle.clock import FakeClock
from lifecycle.supervisor import Supervisor


class Waits:
    """Pauses of no length, doubling on paper, so that a test can read them."""

    def __init__(self) -> None:
        self.given: list[int] = []
        self._next = 1

    def next_s(self) -> float:
        self.given.append(self._next)
        self._next *= 2
        return 0.0

    def reset(self) -> None:
        self._next = 1


async def for_ever() -> None:
    await asyncio.Event().wait()


async def until(what: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not what():  # noqa: ASYNC110 - what is asked has no event
            await asyncio.sleep(0)


async def test_a_loop_that_fails_comes_back_and_the_others_never_notice() -> None:
    runs: list[str] = []

    async def weak() -> None:
        runs.append("weak")
        if len(runs) < 4:
            raise RuntimeError(f"run {len(runs)}")
        await for_ever()

    steady = 0

    async def strong() -> None:
        nonlocal steady
        while True:
            steady += 1
            await asyncio.sleep(0)

    with structlog.testing.capture_logs() as logs:
        async with Supervisor(Waits) as supervisor:
            supervisor.start("strong", strong)
            supervisor.start("weak", weak)
            await until(lambda: len(runs) == 4)
            seen = steady
            await until(lambda: steady > seen + 5)
    assert supervisor.failures == {"strong": 0, "weak": 3}
    assert supervisor.last_error == "weak: RuntimeError: run 3"
    reports = [each for each in logs if each["event"] == "loop_failed"]
    assert [each["failures"] for each in reports] == [1, 2, 3]
    assert all(each["exc_info"].__traceback__ is not None for each in reports)


async def test_a_loop_that_returns_has_failed() -> None:
    runs = 0

    async def short() -> None:
        nonlocal runs
        runs += 1

    async with Supervisor(Waits) as supervisor:
        supervisor.start("short", short)
        await until(lambda: runs > 2)
    assert supervisor.failures["short"] >= 2
    assert supervisor.last_error is not None
    assert "should run for ever" in supervisor.last_error


async def test_pauses_grow_until_a_loop_has_run_for_a_while() -> None:
    clock, waits = FakeClock(), Waits()
    lengths = iter([0.0, 1.0, 29.0, 30.0, 0.0])

    async def failing() -> None:
        length = next(lengths, None)
        if length is None:
            await for_ever()
            return
        clock.advance(length)
        raise OSError("no")

    async with Supervisor(lambda: waits, clock=clock) as supervisor:
        supervisor.start("failing", failing)
        await until(lambda: len(waits.given) == 5)
    assert waits.given == [1, 2, 4, 1, 2]


async def test_a_group_of_errors_is_told_by_its_only_cause() -> None:
    async def group() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(broken())

    async def broken() -> None:
        raise KeyError("bad input\nsecond line")

    async with Supervisor(Waits) as supervisor:
        supervisor.start("group", group)
        await until(lambda: supervisor.failures["group"] > 1)
    assert supervisor.last_error == "group: KeyError: 'bad input\\nsecond line'"


async def test_a_cancellation_that_nobody_asked_for_is_a_failure() -> None:
    runs = 0

    async def cancels_itself() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise asyncio.CancelledError
        await for_ever()

    async with Supervisor(Waits) as supervisor:
        supervisor.start("loop", cancels_itself)
        await until(lambda: runs == 2)
        assert supervisor.failures == {"loop": 1}


async def test_the_end_of_the_block_ends_loops_even_those_that_object() -> None:
    ended: list[str] = []
    started = asyncio.Event()

    async def stubborn() -> None:
        try:
            started.set()
            await for_ever()
        except asyncio.CancelledError:
            ended.append("stubborn")
            raise RuntimeError("not now") from None

    async with Supervisor(Waits) as supervisor:
        supervisor.start("stubborn", stubborn)
        await started.wait()
    assert ended == ["stubborn"]
    assert supervisor.failures == {"stubborn": 0}


async def test_an_error_in_the_block_ends_the_loops_and_is_raised() -> None:
    ended = asyncio.Event()

    async def loop() -> None:
        try:
            await for_ever()
        finally:
            ended.set()

    async def block() -> None:
        async with Supervisor(Waits) as supervisor:
            supervisor.start("loop", loop)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            raise LookupError

    with pytest.raises(LookupError):
        await block()
    assert ended.is_set()


async def test_a_name_is_given_once() -> None:
    async with Supervisor(Waits) as supervisor:
        supervisor.start("loop", for_ever)
        with pytest.raises(ValueError, match="'loop' runs already"):
            supervisor.start("loop", for_ever)
