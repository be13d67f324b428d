from __future__ import annotations

import asyncio

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from broker.messages import Status
from cloud_worker.core.ledger import STATUS, Aside, Cause, Ledger
from cloud_worker.loops.bookkeeping import Bookkeeping
from cloud_worker.loops.complaints import Complaints
from cloud_worker.loops.parcels import Room
from lifecycle.clock import FakeClock

HAPPENINGS = st.lists(
    st.one_of(
        st.integers(1, 50),
        st.sampled_from(Cause),
        st.just("give back"),
        st.sampled_from(Aside),
    ),
    max_size=200,
)


@given(HAPPENINGS)
def test_any_sequence_keeps_the_books_balanced(
    happenings: list[int | Cause | Aside | str],
) -> None:
    ledger, held = Ledger(), 0
    for each in happenings:
        match each:
            case int():
                ledger.take(each)
                held += each
            case Aside():
                ledger.put_aside(each)
            case Cause() if held:
                ledger.end(each)
                held -= 1
            case str() if held:
                ledger.give_back()
                held -= 1
            case _:
                pass  # nothing is held that could end
        assert ledger.mismatch(held) == 0
        counts = ledger.counts(held)
        ends = ("answered", "failed", "expired", "held", "given_back")
        assert counts["taken"] == sum(counts[name] for name in ends)
        for status in ("failed", "expired"):
            by_cause = [
                counts[cause.value] for cause in Cause if STATUS[cause].value == status
            ]
            assert counts[status] == sum(by_cause)


def test_every_cause_says_how_a_request_ends() -> None:
    assert {STATUS[cause] for cause in Cause} == set(Status)
    assert [c for c in Cause if STATUS[c] is Status.OK] == [Cause.ANSWERED]


@pytest.mark.parametrize(("ends", "missing"), [(1, 1), (3, -1)])
def test_a_request_that_is_lost_or_ended_twice_is_cried_out(
    ends: int, missing: int
) -> None:
    room = Room(10, Ledger())
    room.take("m", 2)
    room.ledger.take(2)
    for _ in range(ends):
        room.ledger.end(Cause.ANSWERED)
    room.give("m", 2)
    with structlog.testing.capture_logs() as logs:
        books = Bookkeeping(room, Complaints(FakeClock()))
        assert not books.balanced()
        assert not books.balanced()
    assert [each["event"] for each in logs] == ["ledger_mismatch"] * 2
    assert {each["log_level"] for each in logs} == {"error"}
    assert {each["missing"] for each in logs} == {missing}
    assert room.ledger.mismatches == 2


async def test_the_books_are_looked_at_for_ever_and_told_at_the_end() -> None:
    room = Room(10, Ledger())
    books = Bookkeeping(room, Complaints(FakeClock()), every_s=0.001)
    with structlog.testing.capture_logs() as logs:
        async with asyncio.TaskGroup() as tasks, asyncio.timeout(5):
            looking = tasks.create_task(books.run())
            while len(logs) < 2:  # noqa: ASYNC110 - a list has no event
                await asyncio.sleep(0.001)
            room.ledger.take(1)
            while not room.ledger.mismatches:  # noqa: ASYNC110 - a counter has no event
                await asyncio.sleep(0.001)
            looking.cancel()
        books.close()
    assert (logs[0]["event"], logs[0]["log_level"]) == ("ledger", "debug")
    assert (logs[-1]["event"], logs[-1]["log_level"]) == ("ledger", "info")
    assert logs[-1]["taken"] == 1
