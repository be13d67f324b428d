"""A run against a way that answers, is silent or is slow to take; no broker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from broker.link import LinkDown
from broker.messages import Medium
from lifecycle.clock import SystemClock
from overspill.load.account import End, Ending
from overspill.load.arrivals import Spacing, Steady
from overspill.load.mix import Bounds, Mix, Payload, Plan, Planned
from overspill.load.quantities import Weighted
from overspill.load.report import document
from overspill.load.run import NoConnection, Patience, Run
from overspill.load.ways import Hears


class UpLink:
    """A connection that is there, or says why it is not."""

    def __init__(self, error: str | None = None) -> None:
        self.last_error = error
        self.up = error is None

    async def run(self) -> None:
        await asyncio.Event().wait()


class FakeWay:
    """Answers each message as `behave` says, once it was sent."""

    def __init__(
        self,
        hears: Hears,
        behave: Callable[[FakeWay, Planned], None],
        error: str | None = None,
    ) -> None:
        self.links = [UpLink(error)]
        self.hears = hears
        self.sent: list[Planned] = []
        self.held = asyncio.Event()
        self.held.set()
        self._behave = behave

    def wrap(self, together: Sequence[Planned], *, began_wall_ms: int) -> bytes:
        return f"{together[0].number} from {began_wall_ms}".encode()

    async def send(self, first: Planned, message: bytes) -> None:
        assert message.startswith(f"{first.number} ".encode())
        self.sent.append(first)
        self._behave(self, first)
        await self.held.wait()


def answer(way: FakeWay, planned: Planned) -> None:
    way.hears.endings([Ending(planned.number, End.ANSWERED)])


def stay_silent(way: FakeWay, planned: Planned) -> None:
    pass


def a_run(
    behave: Callable[[FakeWay, Planned], None],
    *,
    rate: float = 500,
    count: int = 20,
    most_publishing: int = 100,
    error: str | None = None,
) -> Run:
    payload = Payload("p", medium=Medium(media_type="image/png", data=b"p"))
    plan = Plan(
        Steady.at(rate, Spacing.CONSTANT),
        Mix(Weighted(("m",), (1.0,)), {"m": [payload]}, Weighted((0.05,), (1.0,))),
        Bounds(for_s=5, requests=count),
    )
    return Run(
        plan,
        lambda hears: FakeWay(hears, behave, error),
        clock=SystemClock(),
        patience=Patience(lost_after_s=0.05, first_error_after_s=0.0, linger_s=0.0),
        most_publishing=most_publishing,
    )


async def test_what_is_answered_is_counted_and_the_run_ends_then() -> None:
    run = a_run(answer)
    await run.perform()

    assert run.finished
    assert run.account.total.ends == {End.ANSWERED: 20}
    assert run.account.lateness.count == 20


async def test_a_silent_system_does_not_slow_the_schedule_and_loses_everything() -> (
    None
):
    run = a_run(stay_silent)
    await run.perform()

    assert run.account.total.ends == {End.LOST: 20}
    # Sent at its pace, 38 ms in all, though the first was lost only after 100 ms.
    assert run.account.last_offer_s == pytest.approx(19 / 500)


async def test_publishes_that_nobody_confirms_are_bounded() -> None:
    def hold(way: FakeWay, planned: Planned) -> None:
        way.held.clear()
        if len(way.sent) == 5:
            asyncio.get_running_loop().call_later(0.3, way.held.set)

    run = a_run(hold, most_publishing=5)
    await run.perform()

    assert run.account.total.ends[End.UNSENT] == 15
    assert run.account.total.ends[End.LOST] == 5


async def test_a_publish_that_fails_is_told_and_its_request_lost_unless_answered() -> (
    None
):
    def fail(way: FakeWay, planned: Planned) -> None:
        if planned.number % 2:
            answer(way, planned)
        raise LinkDown("no link to mqtt://127.0.0.1:1883")

    run = a_run(fail)
    await run.perform()

    assert run.account.publish_failures.counts.total() == 20
    assert run.account.total.ends == {End.ANSWERED: 10, End.LOST: 10}


async def test_a_generator_that_falls_behind_says_that_its_figures_are_not_valid() -> (
    None
):
    def block(way: FakeWay, planned: Planned) -> None:
        # A generator whose processor is taken away.
        until = asyncio.get_running_loop().time() + 0.01
        while asyncio.get_running_loop().time() < until:
            pass
        answer(way, planned)

    run = a_run(block)
    await run.perform()
    found = document(run.plan, run.account, max_lateness_s=0.01, complete=True)

    assert found["valid"] is False
    assert "generator itself was late" in found["invalid_because"]
    # Latency runs from the intended time, so the delay is not hidden.
    assert found["latency_ms"]["max"] > 100
    assert found["goodput"] < 1


async def test_a_link_that_is_down_is_told_in_its_own_words() -> None:
    run = a_run(answer, error="nothing listens at mqtt://127.0.0.1:1")

    with pytest.raises(NoConnection, match="nothing listens"):
        await run.perform()


async def test_a_cancelled_run_keeps_what_it_has_counted() -> None:
    run = a_run(stay_silent, rate=10, count=1000)
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(run.perform())
        while not run.account.total.offered:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.005)
        task.cancel()

    assert not run.finished
    assert run.account.open == run.account.total.offered == 1
