"""Outcomes with a real outbox; the links are fakes that the test holds in its hand."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from typing_extensions import override

from broker.codec import encode
from broker.link import LinkDown
from broker.messages import Reason, Result, Status
from edge_agent.adapters.outbox import Committed, Outbox
from edge_agent.core.answers import Answer, AnswerStatus, Source
from edge_agent.core.delivery import (
    Ending,
    Key,
    Outcome,
    Spill,
    conclude,
)
from edge_agent.loops.outcomes import Outcomes
from edge_agent.loops.uplink import Uplink, UplinkLimits
from lifecycle.clock import SteadyTime, SystemClock
from tests.spills import open_spill
from tests.waiting import until

PATIENCE_S = 40.0


class Wire:
    """A link whose other end is this list."""

    def __init__(self, *, up: bool = True) -> None:
        self.up = up
        self.sent: list[tuple[str, bytes]] = []

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        timeout_s: float = 10.0,
    ) -> None:
        await asyncio.sleep(0)
        if not self.up:
            raise LinkDown("the test took the link down")
        self.sent.append((topic, payload))

    @property
    def answers(self) -> list[dict[str, Any]]:
        return [json.loads(payload) for _, payload in self.sent]


class Parts:
    """Outcomes and what it stands between."""

    def __init__(
        self, outbox: Outbox, *, local_up: bool = True, keep_untold_s: float = 3600.0
    ) -> None:
        self.outbox = outbox
        self.now_ms = SteadyTime(SystemClock()).now_ms
        self.cloud, self.local = Wire(), Wire(up=local_up)
        self.uplink = Uplink(
            agent="a",
            link=self.cloud,
            outbox=outbox,
            limits=UplinkLimits(20, 32, 2**18, 10.0, 120.0),
            now_ms=self.now_ms,
            rng=random.Random(1),
        )
        self.outcomes = Outcomes(
            outbox=outbox,
            uplink=self.uplink,
            local=self.local,
            now_ms=self.now_ms,
            keep_outcomes_s=3600.0,
            keep_untold_s=keep_untold_s,
        )

    def spill(self, id_: str, *, left_ms: float = 60_000.0, **more: Any) -> Spill:
        usual = {"reason": Reason.FORCED, **more}
        return open_spill(id_, now_ms=self.now_ms(), left_ms=left_ms, **usual)

    async def take(self, spill: Spill) -> None:
        accepted = self.outbox.accept(spill)
        self.outcomes.expect(spill)
        assert await accepted == Committed()


@asynccontextmanager
async def running(parts: Parts) -> AsyncIterator[Parts]:
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(parts.outcomes.run())
        yield parts
        task.cancel()


def result(id_: str) -> Result:
    return Result(
        id=id_, device="cam1", model="fashion", status=Status.OK, label="Coat"
    )


def ok(id_: str) -> bytes:
    return encode(result(id_))


@pytest.fixture
async def outbox(tmp_path: Path) -> AsyncIterator[Outbox]:
    async with Outbox(tmp_path / "outbox.db", group_commit_ms=1) as opened:
        yield opened


async def test_an_outcome_is_committed_before_the_device_is_told(
    outbox: Outbox, tmp_path: Path
) -> None:
    async with running(Parts(outbox)) as parts:
        await parts.take(parts.spill("r1"))
        with closing(sqlite3.connect(tmp_path / "outbox.db", timeout=5)) as other:
            other.execute("BEGIN IMMEDIATE")  # Nobody can commit now.
            parts.outcomes.on_results(ok("r1"))
            await asyncio.sleep(0.1)
            assert parts.local.sent == []
            other.rollback()
        await until(lambda: parts.local.sent)
    (answer,) = parts.local.answers
    assert parts.local.sent[0][0] == "answer/cam1"
    assert (answer["status"], answer["source"]) == ("answered", "cloud")
    assert (answer["label"], answer["final"]) == ("Coat", True)


async def test_a_result_that_comes_twice_is_told_once(outbox: Outbox) -> None:
    async with running(Parts(outbox)) as parts:
        await parts.take(parts.spill("r1"))
        for _ in range(3):
            parts.outcomes.on_results(ok("r1"))
        counters = parts.outcomes.counters
        await until(lambda: counters.duplicates + counters.strangers == 2)
        await until(lambda: counters.told == 1)
        parts.outcomes.on_results(ok("r1"))  # Long after, it is a stranger's.
        await until(lambda: counters.results == 4 and counters.strangers >= 1)
    assert len(parts.local.sent) == 1


async def test_a_spill_of_an_earlier_life_is_answered_too(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    async with Outbox(path) as outbox:
        await Parts(outbox).take(Parts(outbox).spill("r1"))
    async with Outbox(path) as outbox, running(Parts(outbox)) as parts:
        parts.outcomes.on_results(ok("r1"))
        await until(lambda: parts.local.sent)
        assert (await outbox.counts()).open == 0


async def test_nonsense_from_the_cloud_changes_nothing(outbox: Outbox) -> None:
    async with running(Parts(outbox)) as parts:
        await parts.take(parts.spill("r1"))
        for payload in (b"", b"\xc1", b"\x93\x01\x02\x03", ok("r1")[:-3], ok("nobody")):
            parts.outcomes.on_results(payload)
        await until(lambda: parts.outcomes.counters.strangers == 1)
        assert parts.outcomes.counters.unreadable == 4
        assert (await outbox.counts()).open == 1
        assert parts.local.sent == []


async def test_a_spill_with_a_short_deadline_is_not_overlooked_while_others_are_looked_at(
    tmp_path: Path,
) -> None:
    class Interrupted(Outbox):
        """One that a spill comes to while the soonest deadline is being read."""

        then: Callable[[], None] | None = None

        @override
        async def next_deadline_ms(self) -> float | None:
            found = await super().next_deadline_ms()
            if self.then is not None:
                self.then()
                self.then = None
            return found

    async with (
        Interrupted(tmp_path / "outbox.db", group_commit_ms=1) as outbox,
        running(Parts(outbox)) as parts,
    ):
        await parts.take(parts.spill("long", left_ms=60_000))

        def short() -> None:
            spill = parts.spill("short", left_ms=100)
            outbox.accept(spill).add_done_callback(lambda done: done.result())
            parts.outcomes.expect(spill)

        outbox.then = short
        await parts.take(parts.spill("first", left_ms=10))
        await until(lambda: len(parts.local.sent) == 2)
    assert [each["id"] for each in parts.local.answers] == ["first", "short"]
    assert {each["status"] for each in parts.local.answers} == {"expired"}
    assert parts.local.answers[1]["ms"] < 1000


async def test_a_fallback_comes_at_the_deadline_and_a_late_result_changes_nothing(
    outbox: Outbox,
) -> None:
    edge = Answer("r1", "cam1", AnswerStatus.ANSWERED, Source.EDGE, label="Shirt")
    async with running(Parts(outbox)) as parts:
        await parts.take(parts.spill("r1", left_ms=50, edge=edge))
        await until(lambda: parts.local.sent)
        parts.outcomes.on_results(ok("r1"))
        await until(lambda: parts.outcomes.counters.strangers == 1)
    (answer,) = parts.local.answers
    assert (answer["source"], answer["label"]) == ("edge_fallback", "Shirt")
    assert answer["ms"] >= 50


async def test_while_no_outcome_can_be_recorded_nothing_spins_or_piles_up(
    tmp_path: Path,
) -> None:
    class Counted(Outbox):
        asked = 0

        @override
        async def expired(self, now_ms: float, *, limit: int = 256) -> list[Spill]:
            self.asked += 1
            return await super().expired(now_ms, limit=limit)

    async with (
        Counted(tmp_path / "outbox.db", group_commit_ms=1) as outbox,
        running(Parts(outbox)) as parts,
    ):
        for number in range(5):
            await parts.take(parts.spill(f"r{number}", left_ms=200))
        outbox._table._db.execute(
            "CREATE TRIGGER no_room BEFORE UPDATE OF stage ON spill "
            "BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
        )
        await asyncio.sleep(1.0)  # Longer than any deadline: time itself is tested.
        assert parts.local.sent == []
        assert 1 <= outbox.asked < 60  # Fifty looks a second, not thousands.
        assert outbox._ends.waiting <= 5
        outbox._table._db.execute("DROP TRIGGER no_room")
        await until(lambda: len(parts.local.sent) == 5)
        assert (await outbox.counts()).expired == 5


async def test_a_thousand_answers_are_told_soon_after_the_devices_broker_is_back(
    outbox: Outbox,
) -> None:
    async with running(Parts(outbox, local_up=False)) as parts:
        spills = [parts.spill(f"r{number}") for number in range(1000)]
        await asyncio.gather(*map(parts.take, spills))
        for each in spills:
            parts.outcomes.on_results(ok(each.id))
        await until(lambda: not (parts.outcomes._ending or parts.outcomes._telling))
        assert (await outbox.counts()).untold == 1000
        assert parts.local.sent == []
        parts.local.up = True
        parts.outcomes.local_link_changed(up=True)
        await until(lambda: len(parts.local.sent) >= 1000)
        assert (await outbox.counts()).untold == 0
    told = [each["id"] for each in parts.local.answers]
    assert sorted(told) == sorted(each.id for each in spills)


async def test_a_resent_id_is_told_its_outcome_again(outbox: Outbox) -> None:
    async with running(Parts(outbox)) as parts:
        await parts.take(parts.spill("r1"))
        parts.outcomes.on_results(ok("r1"))
        await until(lambda: parts.outcomes.counters.told == 1)
        key: Key = ("cam1", "r1")
        recorded = await outbox.find(key)
        assert recorded is not None
        assert recorded.outcome is Outcome.ANSWERED
        assert recorded.answer is not None
        parts.outcomes.tell_again(key, recorded.answer)
        await until(lambda: len(parts.local.sent) == 2)
    assert parts.local.sent[0] == parts.local.sent[1]


async def test_a_pool_whose_clock_is_ahead_is_asked_again_with_its_own_time(
    outbox: Outbox,
) -> None:
    async with running(Parts(outbox)) as parts:
        spill = parts.spill("r1")
        await parts.take(spill)
        ahead_ms = round(parts.now_ms()) + 3_600_000
        parts.outcomes.on_results(
            encode(
                Result(
                    id="r1",
                    device="cam1",
                    model="fashion",
                    status=Status.EXPIRED,
                    server_time_ms=ahead_ms,
                )
            )
        )
        assert abs(parts.uplink.pool_offset_ms - 3_600_000) < 1000

        async def claimed() -> list[Spill]:
            return await outbox.claim_due(
                parts.now_ms(),
                limit=1,
                max_bytes=10**6,
                next_due_ms=lambda _: spill.deadline_ms,
            )

        async with asyncio.timeout(PATIENCE_S):
            while not await claimed():  # noqa: ASYNC110 - it becomes due by time alone
                await asyncio.sleep(0.02)
        assert parts.local.sent == []


async def test_an_answer_that_no_device_takes_in_time_is_recorded_as_undelivered(
    outbox: Outbox,
) -> None:
    away = Parts(outbox, local_up=False)
    for number in range(3):
        await away.take(away.spill(f"r{number}"))
        ending = conclude(away.spill(f"r{number}"), result(f"r{number}"), 0.0)
        assert isinstance(ending, Ending)
        await outbox.settle(
            ("cam1", f"r{number}"),
            ending.outcome,
            b"{}",
            ended_ms=away.now_ms() - 3_600_001.0 * (number < 2),
        )
    with capture_logs() as logs:
        async with running(Parts(outbox, local_up=False)) as parts:
            await until(lambda: parts.outcomes.counters.undelivered == 2)
            counts = await outbox.counts()
            assert (counts.untold, counts.ledger.undelivered) == (1, 2)
            # It is told no more by itself, only when the device asks again.
            parts.local.up = True
            parts.outcomes.local_link_changed(up=True)
            await until(lambda: parts.outcomes.counters.told == 1)
            assert len(parts.local.sent) == 1
    (said,) = [each for each in logs if each["event"] == "answers_undelivered"]
    assert said["count"] == 2  # One line for all of them.


async def test_an_operator_may_end_a_request_and_a_late_result_changes_nothing(
    outbox: Outbox,
) -> None:
    async with running(Parts(outbox)) as parts:
        await parts.take(parts.spill("r1"))
        assert await parts.outcomes.cancel(("cam1", "r1")) is True
        parts.outcomes.on_results(ok("r1"))
        await until(lambda: parts.outcomes.counters.strangers == 1)
        await until(lambda: parts.outcomes.counters.told == 1)
        assert await parts.outcomes.cancel(("cam1", "r1")) is False
        ledger = (await outbox.counts()).ledger
    (answer,) = parts.local.answers
    assert answer["reason"] == "cancelled by the operator"
    assert ledger.ended == {("failed", "cancelled"): 1}
