"""The outbox against a real SQLite file, looked at through a second connection."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from broker.messages import Priority, Reason
from edge_agent.adapters.outbox import (
    Committed,
    Outbox,
    OutboxFull,
    OutboxUnusable,
    Overtaken,
    Recorded,
)
from edge_agent.adapters.spill_file import open_table
from edge_agent.adapters.spill_table import SpillTable
from edge_agent.core.answers import Answer, AnswerStatus, Source
from edge_agent.core.delivery import Channel, Outcome, Spill, Stage, Step, Why
from edge_agent.core.quotas import Full, QuotaLimits
from tests.spills import open_spill

NOW_MS = 1_700_000_000_000.0
FAR_MS = NOW_MS + 60_000.0
EDGE = Answer(
    id="r",
    device="cam1",
    status=AnswerStatus.ANSWERED,
    source=Source.EDGE,
    label="Shirt",
    confidence=0.4,
    outputs={"logits": np.array([[1.0, 2.0]], np.float32)},
)


def spill(id_: str, device: str = "cam1", **more: Any) -> Spill:
    usual = {"device": device, "request": b"x" * 1000, **more}
    return open_spill(id_, now_ms=NOW_MS, left_ms=FAR_MS - NOW_MS, **usual)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.db"


@contextlib.contextmanager
def second_look(path: Path) -> Iterator[sqlite3.Connection]:
    """Another connection to the same file, as an operator would open it."""
    db = sqlite3.connect(path, isolation_level=None, timeout=5)
    try:
        yield db
    finally:
        db.close()


def ids_in(path: Path, where: str = "1") -> set[str]:
    with second_look(path) as db:
        return {row[0] for row in db.execute(f"SELECT id FROM spill WHERE {where}")}


def settle(outbox: Outbox, each: Spill, answer: bytes = b"ok") -> asyncio.Future[bool]:
    return outbox.settle(each.key, Outcome.ANSWERED, answer, ended_ms=NOW_MS + 1)


def events(logs: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    return [each for each in logs if each["event"] == name]


def after(ms: float) -> Callable[[int], float]:
    """When a claimed row is due again."""
    return lambda attempt: NOW_MS + ms * attempt


# --- accepted means committed --------------------------------------------------------


async def test_accepted_comes_after_the_commit_and_not_before(path: Path) -> None:
    async with Outbox(path) as outbox:
        with second_look(path) as other:
            other.execute("BEGIN IMMEDIATE")  # Nobody else can commit now.
            accepted = outbox.accept(spill("a"))
            await asyncio.wait({accepted}, timeout=0.1)
            assert not accepted.done()
            other.execute("COMMIT")
        assert await accepted == Committed()
        assert ids_in(path) == {"a"}


async def test_two_hundred_at_once_share_few_commits(path: Path) -> None:
    statements: list[str] = []
    async with Outbox(path) as outbox:
        outbox._table._db.set_trace_callback(statements.append)
        done = await asyncio.gather(
            *(outbox.accept(spill(f"r{n}")) for n in range(200))
        )
        outbox._table._db.set_trace_callback(None)
        assert done == [Committed()] * 200
        assert 1 <= statements.count("COMMIT") <= 3
    assert len(ids_in(path)) == 200


async def test_a_group_is_written_when_it_is_large_without_waiting_longer(
    path: Path,
) -> None:
    async with Outbox(path, group_commit_ms=60_000) as outbox:
        accepted = [outbox.accept(spill(f"r{n}")) for n in range(512)]
        async with asyncio.timeout(10):
            assert await accepted[-1] == Committed()


PROGRAM = """
import asyncio, sys
from pathlib import Path
sys.path[:0] = {paths!r}
from test_outbox import spill, settle
from edge_agent.adapters.outbox import Outbox

async def one(outbox, number):
    each = spill(f"r{{number}}")
    await outbox.accept(each)
    print("accepted", each.id, flush=True)
    if number % 3 == 0:
        await settle(outbox, each)
        print("ended", each.id, flush=True)

async def main():
    async with Outbox(Path({path!r}), group_commit_ms=1) as outbox:
        number = 0
        while True:
            async with asyncio.TaskGroup() as some:
                for _ in range(7):
                    some.create_task(one(outbox, number := number + 1))

asyncio.run(main())
"""


def said_before_kill_9(path: Path) -> list[str]:
    """Run the program above, kill it once it has said enough, and hear all it said."""
    here = Path(__file__).parent
    code = PROGRAM.format(paths=[str(here), str(here.parents[1])], path=str(path))
    said: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        for line in program.stdout:
            said.append(line)
            if len(said) == 150:
                program.kill()
    # What was in the pipe when it was killed had been said too.
    return [line for line in said if line.endswith("\n")]


async def test_what_was_accepted_and_what_was_told_is_there_after_kill_9(
    path: Path,
) -> None:
    words = [line.split() for line in said_before_kill_9(path)]
    accepted = {id_ for what, id_ in words if what == "accepted"}
    ended = {id_ for what, id_ in words if what == "ended"}
    assert len(accepted) >= 100
    assert ended

    async with Outbox(path) as outbox:
        assert accepted <= ids_in(path)
        assert ended <= ids_in(path, "stage = 1 AND outcome = 'answered'")
        assert (await outbox.counts()).answered >= len(ended)


async def test_open_spills_are_as_they_were_after_a_restart(path: Path) -> None:
    odd = spill(
        "odd",
        edge=EDGE,
        priority=Priority.HI,
        reason=Reason.FORCED,
        channel=Channel.CALL,
        encoding="msgpack",
        request=bytes(range(256)),
        deadline_ms=FAR_MS + 0.25,
    )
    async with Outbox(path) as outbox:
        for each in (odd, spill("plain"), spill("done")):
            await outbox.accept(each)
        await settle(outbox, spill("done"))
    async with Outbox(path, limits=QuotaLimits(max_rows=2)) as outbox:
        counts = await outbox.counts()
        assert (counts.open, counts.open_bytes, counts.answered) == (2, 1256, 1)
        assert counts.oldest_accepted_ms == NOW_MS
        with pytest.raises(OutboxFull):  # The rows of before count, too.
            _ = outbox.accept(spill("more"))
        back = await outbox.get(odd.key)
        assert back is not None
        assert back.edge is not None
        assert back.edge.outputs is not None
        assert np.array_equal(back.edge.outputs["logits"], [[1.0, 2.0]])
        assert back.edge.label == "Shirt"
        assert replace(back, edge=None) == replace(odd, edge=None)
        assert await outbox.get(("cam1", "done")) is None


async def test_a_pending_group_is_written_when_the_agent_stops(path: Path) -> None:
    async with Outbox(path, group_commit_ms=60_000) as outbox:
        open_, overtaken = spill("open"), spill("overtaken")
        accepted = outbox.accept(open_)
        _ = outbox.accept(overtaken)
        _ = settle(outbox, overtaken)
    assert await accepted == Committed()
    assert ids_in(path, "stage = 0") == {"open"}
    assert ids_in(path, "stage = 1") == {"overtaken"}


# --- outcomes ------------------------------------------------------------------------


async def test_an_answer_before_the_commit_is_given_at_once_and_written_later(
    path: Path,
) -> None:
    async with Outbox(path, group_commit_ms=60_000) as outbox:
        each = spill("fast")
        accepted = outbox.accept(each)
        first = settle(outbox, each, b"cloud")
        assert first.done()
        assert first.result()
        assert await accepted == Overtaken()
        assert ids_in(path) == set()

        same = Recorded(Stage.SETTLED, "json", Outcome.ANSWERED, b"cloud")
        assert await outbox.find(each.key) == same
        counts = await outbox.counts()  # Looking writes what is pending.
        assert (counts.open, counts.answered, counts.untold) == (0, 1, 1)
        assert ids_in(path, "stage = 1 AND request IS NULL") == {"fast"}
        assert await outbox.find(each.key) == same
        again = outbox.accept(each)
        assert await outbox.get(each.key) == each  # Held until it is written,
        await outbox.counts()
        assert await again == same  # and then known for what it is.
        assert await outbox.get(each.key) is None


async def test_a_device_that_was_told_before_the_row_was_written_is_told_no_more(
    path: Path,
) -> None:
    async with Outbox(path, group_commit_ms=60_000) as outbox:
        _ = outbox.accept(spill("fast"))
        _ = settle(outbox, spill("fast"))
        await outbox.mark_told([("cam1", "fast")], NOW_MS + 2)
        assert (await outbox.counts()).untold == 0
        assert await outbox.untold() == []
        recorded = await outbox.find(("cam1", "fast"))
        assert recorded is not None
        assert recorded.stage is Stage.TOLD


async def test_only_the_first_outcome_counts(path: Path) -> None:
    async with Outbox(path) as outbox:
        each = spill("a")
        await outbox.accept(each)
        first, second = settle(outbox, each, b"one"), settle(outbox, each, b"two")
        late = outbox.settle(each.key, Outcome.EXPIRED, b"three", ended_ms=NOW_MS)
        assert [await first, await second, await late] == [True, False, False]
        assert await settle(outbox, each) is False
        assert await settle(outbox, spill("nobodys")) is False
        recorded = await outbox.find(each.key)
        assert recorded == Recorded(Stage.SETTLED, "json", Outcome.ANSWERED, b"one")
        counts = await outbox.counts()
        assert (counts.answered, counts.expired, counts.open) == (1, 0, 0)


async def test_an_id_sent_twice_at_once_gets_one_outcome_however_slow_the_second_is(
    path: Path,
) -> None:
    async with Outbox(path, group_commit_ms=60_000) as outbox:
        for answer_first in (True, False):
            each = spill(f"r{answer_first:d}")
            first = outbox.accept(each)
            if not answer_first:
                await outbox.counts()
            assert await settle(outbox, each, b"one") is True
            await outbox.counts()
            await first
            # It was looked up before the first was taken, and is taken only now.
            second = outbox.accept(each)
            assert await settle(outbox, each, b"two") is False
            await outbox.counts()
            assert await second == Recorded(
                Stage.SETTLED, "json", Outcome.ANSWERED, b"one"
            )
        ledger = (await outbox.counts()).ledger
        assert ledger.ended == {("answered", "cloud"): 2}
        assert ledger.balanced


async def test_an_answer_during_the_commit_is_told_after_it(path: Path) -> None:
    async with Outbox(path) as outbox:
        each = spill("a")
        with second_look(path) as other:
            other.execute("BEGIN IMMEDIATE")
            accepted = outbox.accept(each)
            outbox._groups.hand_over()
            first = settle(outbox, each)
            await asyncio.wait({first}, timeout=0.1)
            assert not first.done()
            assert not accepted.done()
            other.execute("COMMIT")
        assert await accepted == Committed()
        assert await first is True
        assert ids_in(path, "stage = 1") == {"a"}


async def test_two_devices_may_use_the_same_id(path: Path) -> None:
    async with Outbox(path) as outbox:
        one, two = spill("a", "cam1"), spill("a", "cam2")
        assert await outbox.accept(one) == Committed()
        assert await outbox.accept(two) == Committed()
        assert await settle(outbox, one) is True
        assert await outbox.get(two.key) == two


async def test_the_same_id_again_hears_what_is_recorded(path: Path) -> None:
    async with Outbox(path) as outbox:
        both = outbox.accept(spill("a")), outbox.accept(spill("a"))
        assert await both[0] == Committed()
        assert await both[1] == Recorded(Stage.OPEN, "json")
        again = spill("a", encoding="msgpack", request=b"other")
        assert await outbox.accept(again) == Recorded(Stage.OPEN, "json")
        assert await outbox.get(("cam1", "a")) == spill("a")
        counts = await outbox.counts()
        assert counts.open == 1
        await settle(outbox, spill("a"), b"told")
        assert await outbox.accept(spill("a")) == Recorded(
            Stage.SETTLED, "json", Outcome.ANSWERED, b"told"
        )


async def test_a_resent_id_is_not_acknowledged_before_its_first_row_is_safe(
    path: Path,
) -> None:
    async with Outbox(path) as outbox, asyncio.TaskGroup() as group:
        with second_look(path) as other:
            other.execute("BEGIN IMMEDIATE")  # Nobody else can commit now.
            first, twin = outbox.accept(spill("a")), outbox.accept(spill("a"))
            looked_up = group.create_task(outbox.find(("cam1", "a")))
            await asyncio.wait({looked_up}, timeout=0.1)
            assert not any(each.done() for each in (first, twin, looked_up))
            other.execute("COMMIT")
        assert await twin == await looked_up == Recorded(Stage.OPEN, "json")
        assert ids_in(path) == {"a"}


async def test_a_resent_id_during_the_commit_is_no_row_to_be_settled_before_it(
    path: Path,
) -> None:
    async with Outbox(path, group_commit_ms=1) as outbox:
        with second_look(path) as other:
            other.execute("BEGIN IMMEDIATE")  # Nobody else can commit now.
            first = outbox.accept(spill("a"))
            await asyncio.wait({first}, timeout=0.1)
            again = outbox.accept(spill("a"))
            told = outbox.settle(
                ("cam1", "a"), Outcome.ANSWERED, b"one", ended_ms=NOW_MS
            )
            await asyncio.wait({again}, timeout=0.1)
            assert not first.done()
            assert not again.done()
            assert not told.done(), "told of an outcome that is not recorded"
            other.execute("COMMIT")
        assert await first == Committed()
        assert await again == Recorded(Stage.OPEN, "json")
        assert await told


async def test_a_resent_id_whose_answer_overtakes_its_row_hears_that_answer(
    path: Path,
) -> None:
    async with (
        Outbox(path, group_commit_ms=100) as outbox,
        asyncio.TaskGroup() as group,
    ):
        first = outbox.accept(spill("b"))
        again = outbox.accept(spill("b"))
        looked_up = group.create_task(outbox.find(("cam1", "b")))
        await asyncio.sleep(0)
        key = ("cam1", "b")
        outbox.settle(key, Outcome.ANSWERED, b"one", ended_ms=NOW_MS).result()
        assert await first == await again == Overtaken()
        told = Recorded(Stage.SETTLED, "json", Outcome.ANSWERED, b"one")
        assert await looked_up == told


async def test_an_id_that_is_overtaken_while_it_is_open_already_leaves_no_trace(
    path: Path,
) -> None:
    async with Outbox(path, limits=QuotaLimits(max_rows=2)) as outbox:
        await outbox.accept(spill("a"))
        _ = outbox.accept(spill("a"))  # A resend that raced the first...
        assert await settle(outbox, spill("a")) is True  # ... and its answer.
        counts = await outbox.counts()
        assert (counts.open, counts.answered) == (0, 1)
        # Both places are free again.
        accepted = [outbox.accept(spill(id_)) for id_ in "bc"]
        assert await asyncio.gather(*accepted) == [Committed(), Committed()]


async def test_untold_answers_come_oldest_first_until_they_are_told(path: Path) -> None:
    async with Outbox(path) as outbox:
        for id_ in "abc":
            await outbox.accept(spill(id_))
        for id_ in "cab":
            await settle(outbox, spill(id_), id_.encode())
        untold = await outbox.untold()
        assert [(key[1], answer) for key, _, answer in untold] == [
            ("a", b"a"),
            ("b", b"b"),
            ("c", b"c"),
        ]
        await outbox.mark_told([("cam1", "b"), ("cam1", "nobodys")], NOW_MS + 2)
        assert [key[1] for key, _, _ in await outbox.untold()] == ["a", "c"]
        # Told at once, as to a caller in the same process.
        await outbox.accept(spill("d"))
        await outbox.settle(
            ("cam1", "d"),
            Outcome.FAILED,
            b"",
            ended_ms=NOW_MS,
            step=Step.ANSWER_CALLER,
        )
        assert [key[1] for key, _, _ in await outbox.untold()] == ["a", "c"]
        assert await outbox.forget_closed(NOW_MS + 10) == 2
        assert ids_in(path) == {"a", "c"}
        counts = await outbox.counts()  # Forgotten rows still count.
        assert (counts.answered, counts.failed) == (3, 1)


async def test_deadlines_come_soonest_first(path: Path) -> None:
    async with Outbox(path, group_commit_ms=60_000) as outbox:
        assert await outbox.next_deadline_ms() is None
        for id_, left_ms in (("later", 300.0), ("now", 100.0), ("soon", 200.0)):
            _ = outbox.accept(spill(id_, deadline_ms=NOW_MS + left_ms))
        assert await outbox.next_deadline_ms() == NOW_MS + 100
        assert await outbox.expired(NOW_MS + 99) == []
        expired = await outbox.expired(NOW_MS + 200)
        assert [each.id for each in expired] == ["now", "soon"]


# --- what is sent ----------------------------------------------------------------------


async def test_the_most_urgent_class_is_claimed_first_and_in_it_the_earliest_deadline(
    path: Path,
) -> None:
    async with Outbox(path) as outbox:
        for id_, priority, due_ms, left_ms, attempt in (
            ("bulk", Priority.BULK, 0.0, 1000.0, 0),
            ("late", Priority.NORM, 0.0, 3000.0, 0),
            ("soon", Priority.NORM, 0.0, 2000.0, 0),
            # Sent before, and due again: its deadline decides as any other's does.
            ("again", Priority.NORM, 20.0, 2500.0, 1),
            ("expired", Priority.NORM, 0.0, 10.0, 0),
            ("hi", Priority.HI, 30.0, 9000.0, 1),
            ("not-yet", Priority.HI, 31.0, 1000.0, 1),
        ):
            _ = outbox.accept(
                spill(
                    id_,
                    priority=priority,
                    due_ms=NOW_MS + due_ms,
                    deadline_ms=NOW_MS + left_ms,
                    attempt=attempt,
                )
            )
        await outbox.counts()

        async def claim(limit: int) -> list[tuple[str, int]]:
            claimed = await outbox.claim_due(
                NOW_MS + 30, limit=limit, max_bytes=10**6, next_due_ms=after(100)
            )
            return [(each.id, each.attempt) for each in claimed]

        assert await claim(3) == [("hi", 2), ("soon", 1), ("again", 2)]
        assert await claim(3) == [("late", 1), ("bulk", 1)]
        assert await claim(3) == []  # What has expired is not sent.


async def test_a_claimed_row_comes_back_when_it_is_due_and_counts_its_sends(
    path: Path,
) -> None:
    async with Outbox(path) as outbox:
        await outbox.accept(spill("a"))

        async def claim(now_ms: float) -> list[Spill]:
            return await outbox.claim_due(
                now_ms, limit=10, max_bytes=10**6, next_due_ms=after(100)
            )

        (first,) = await claim(NOW_MS)
        assert first.attempt == 1
        assert await claim(NOW_MS + 99) == []
        (second,) = await claim(NOW_MS + 100)
        assert second.attempt == 2
        assert second.request == spill("a").request
        assert await claim(NOW_MS + 199) == []
        await outbox.reschedule([("cam1", "a")], NOW_MS)
        assert [each.attempt for each in await claim(NOW_MS)] == [3]
        await settle(outbox, spill("a"))
        assert await claim(FAR_MS) == []


async def test_a_claim_is_bounded_in_bytes_but_one_row_always_fits(path: Path) -> None:
    async with Outbox(path) as outbox:
        for id_ in ("a", "b", "c"):
            await outbox.accept(spill(id_, request=bytes(1000)))

        async def claim(max_bytes: int) -> int:
            claimed = await outbox.claim_due(
                NOW_MS, limit=10, max_bytes=max_bytes, next_due_ms=after(1000)
            )
            return len(claimed)

        assert await claim(10) == 1
        assert await claim(2000) == 2


async def test_what_is_not_committed_yet_is_sent_at_the_time_it_was_moved_to(
    path: Path,
) -> None:
    async with Outbox(path, group_commit_ms=60_000) as outbox:
        _ = outbox.accept(spill("a", due_ms=FAR_MS))
        await outbox.reschedule([("cam1", "a")], NOW_MS)
        await outbox.counts()
        claimed = await outbox.claim_due(
            NOW_MS, limit=1, max_bytes=10**6, next_due_ms=after(1000)
        )
        assert [each.id for each in claimed] == ["a"]


# --- limits ----------------------------------------------------------------------------


async def test_a_limit_of_rows_refuses_and_room_comes_back(path: Path) -> None:
    async with Outbox(path, limits=QuotaLimits(max_rows=2)) as outbox:
        await asyncio.gather(outbox.accept(spill("a")), outbox.accept(spill("b")))
        with pytest.raises(OutboxFull, match="holds 2 requests, its limit"):
            _ = outbox.accept(spill("c"))
        await settle(outbox, spill("a"))
        assert await outbox.accept(spill("c")) == Committed()
        # One that is overtaken gives its place back at once.
        with pytest.raises(OutboxFull):
            _ = outbox.accept(spill("d"))
        await settle(outbox, spill("b"))
        _ = outbox.accept(spill("d"))
        _ = settle(outbox, spill("d"))
        assert await outbox.accept(spill("e")) == Committed()
    assert ids_in(path, "stage = 0") == {"c", "e"}


async def test_a_limit_of_bytes_refuses_and_room_comes_back(path: Path) -> None:
    async with Outbox(path, limits=QuotaLimits(max_bytes=2500)) as outbox:
        await asyncio.gather(outbox.accept(spill("a")), outbox.accept(spill("b")))
        with pytest.raises(OutboxFull, match="holds 2000 bytes of its 2500"):
            _ = outbox.accept(spill("c"))
        assert await outbox.accept(spill("small", request=bytes(500))) == Committed()
        await settle(outbox, spill("a"))
        assert await outbox.accept(spill("c")) == Committed()


async def test_the_reserve_of_the_disk_refuses_and_room_comes_back(
    path: Path,
) -> None:
    held = path.with_name("held")
    size = 256 * 1024**2
    with held.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
    reserve = shutil.disk_usage(path.parent).free + size // 2
    async with Outbox(path, disk_reserve_bytes=reserve) as outbox:
        with pytest.raises(OutboxFull, match="kept in reserve"):
            _ = outbox.accept(spill("a"))
        held.unlink()
        assert await outbox.accept(spill("a")) == Committed()


# --- a disk that fails -------------------------------------------------------------------


def fill(outbox: Outbox) -> None:
    """From now on SQLite itself says that the disk is full."""
    db = outbox._table._db
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    db.execute(f"PRAGMA max_page_count = {pages}")


def make_room(outbox: Outbox) -> None:
    outbox._table._db.execute("PRAGMA max_page_count = 1000000")


async def test_a_full_disk_refuses_and_what_was_accepted_stays(path: Path) -> None:
    async with Outbox(path) as outbox:
        kept = [spill(f"r{n}") for n in range(20)]
        await asyncio.gather(*map(outbox.accept, kept))
        fill(outbox)
        large = bytes(100_000)
        refused = [outbox.accept(spill(f"x{n}", request=large)) for n in range(3)]
        for each in refused:
            with pytest.raises(OutboxFull, match="disk is full"):
                await each
        assert (await outbox.counts()).open == 20
        assert await outbox.find(("cam1", "x0")) is None
        assert {each.id for each in kept} == ids_in(path)
        make_room(outbox)
        assert await outbox.accept(spill("x0", request=large)) == Committed()


async def test_an_outcome_waits_for_room_and_is_told_only_then(path: Path) -> None:
    large = bytes(200_000)
    with capture_logs() as logs:
        async with Outbox(path) as outbox:
            await outbox.accept(spill("a"))
            fill(outbox)
            first = settle(outbox, spill("a"), large)
            await asyncio.wait({first}, timeout=0.2)
            assert not first.done()
            make_room(outbox)
            async with asyncio.timeout(5):
                assert await first is True
    assert ids_in(path, "stage = 1 AND length(answer) = 200000") == {"a"}
    assert events(logs, "outcome_not_recorded")


async def test_an_answer_that_was_told_at_once_is_written_when_there_is_room(
    path: Path,
) -> None:
    large = bytes(200_000)
    with capture_logs() as logs:
        async with Outbox(path, group_commit_ms=0) as outbox:
            fill(outbox)
            _ = outbox.accept(spill("a"))
            assert await settle(outbox, spill("a"), large) is True
            async with asyncio.timeout(5):
                while not events(logs, "outbox_not_written"):  # noqa: ASYNC110 - a log
                    await asyncio.sleep(0.01)
            assert ids_in(path) == set()
            recorded = await outbox.find(("cam1", "a"))
            assert recorded is not None
            assert recorded.answer == large
            make_room(outbox)
    assert ids_in(path, "stage = 1") == {"a"}


async def test_a_row_that_cannot_be_stored_refuses_its_device_and_stops_nothing(
    path: Path,
) -> None:
    unstorable = replace(EDGE, outputs={"x": np.array([1j])})
    async with Outbox(path) as outbox:
        neighbour = outbox.accept(spill("a"))
        with pytest.raises(OutboxFull, match="could not be written"):
            await outbox.accept(spill("odd", edge=unstorable))
        assert await neighbour == Committed()
        assert (await outbox.counts()).open == 1


def size_of(path: Path) -> int:
    return path.stat().st_size


async def test_the_log_moves_into_the_file_when_nothing_is_accepted_any_more(
    path: Path,
) -> None:
    async with Outbox(path) as outbox:
        keys = [("cam1", f"r{n}") for n in range(50)]
        await asyncio.gather(*(outbox.accept(spill(id_)) for _, id_ in keys))
        before = size_of(path)
        for _ in range(20):
            await outbox.reschedule(keys, NOW_MS + 1)
        async with asyncio.timeout(5):
            while size_of(path) == before:  # noqa: ASYNC110 - no event tells of a file
                await asyncio.sleep(0.01)


# --- the file itself ---------------------------------------------------------------------


def damage_header(path: Path) -> None:
    path.write_bytes(b"this is no database" * 500)


def damage_pages(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[8192:] = b"\xa5" * (len(data) - 8192)
    path.write_bytes(data)


def file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:6000])


@pytest.mark.parametrize("damage", [damage_header, damage_pages, cut_short])
async def test_a_corrupt_file_is_set_aside_and_reported_never_deleted(
    path: Path, damage: Callable[[Path], None]
) -> None:
    async with Outbox(path) as outbox:
        await asyncio.gather(*(outbox.accept(spill(f"r{n}")) for n in range(50)))
    damage(path)
    damaged = file_digest(path)
    with capture_logs() as logs:
        async with Outbox(path) as outbox:
            assert (await outbox.counts()).open == 0
            assert await outbox.accept(spill("new")) == Committed()
    (report,) = events(logs, "outbox_corrupt")
    assert report["log_level"] == "error"
    (aside,) = path.parent.glob("outbox.db.corrupt-*[0-9]")
    assert report["set_aside"] == str(aside)
    assert file_digest(aside) == damaged
    assert ids_in(path) == {"new"}


async def test_a_file_of_a_later_version_is_left_alone(path: Path) -> None:
    async with Outbox(path) as outbox:
        await outbox.accept(spill("a"))
    with second_look(path) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(OutboxUnusable, match="has schema 99"):
        async with Outbox(path):
            pass
    assert ids_in(path) == {"a"}


@pytest.mark.parametrize("what", ["missing/outbox.db", "."])
async def test_a_place_that_cannot_hold_the_file_is_named(
    tmp_path: Path, what: str
) -> None:
    with pytest.raises(OutboxUnusable, match="cannot open the outbox"):
        async with Outbox(tmp_path / what):
            pass


def steps_of(table: SpillTable, work: Callable[[], object]) -> int:
    """Tens of steps of SQLite's machine; a scan of a row takes at least one."""
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    table._db.set_progress_handler(count, 10)
    try:
        with table.transaction("NORMAL"):
            work()
    finally:
        table._db.set_progress_handler(None, 0)
    return steps


@pytest.mark.parametrize("attempt", [0, 1], ids=["unsent", "sent and not due"])
def test_claiming_from_a_deep_outbox_does_not_read_it_all(
    path: Path, attempt: int
) -> None:
    table = open_table(path)
    due_ms = FAR_MS if attempt else NOW_MS
    with table.transaction("NORMAL"):
        for number in range(3000):
            priority = Priority.BULK if attempt == 0 else Priority.HI
            each = spill(f"r{number}", request=b"", due_ms=due_ms, attempt=attempt)
            table.insert(replace(each, priority=priority))
        table.insert(spill("due"))
    claimed: list[Spill] = []
    steps = steps_of(
        table,
        lambda: claimed.extend(
            table.claim_due(
                NOW_MS + 1, limit=1, max_bytes=10**6, next_due_ms=after(100)
            )
        ),
    )
    table.close()
    assert [each.id for each in claimed] == ["due"]
    assert steps < 100  # A scan of the rows takes over a thousand.


async def test_a_group_with_known_ids_takes_the_new_ones_and_tells_the_others(
    path: Path,
) -> None:
    async with Outbox(path) as outbox:
        await outbox.accept(spill("r7"))
        await settle(outbox, spill("r7"))
        told = await asyncio.gather(
            *(outbox.accept(spill(f"r{number}")) for number in range(100))
        )
        assert told[7] == Recorded(Stage.SETTLED, "json", Outcome.ANSWERED, b"ok")
        assert told[:7] + told[8:] == [Committed()] * 99
        counts = await outbox.counts()
        assert (counts.open, counts.open_bytes) == (99, 99_000)
        assert counts.ledger.accepted == {"hard": 100}
        assert counts.ledger.balanced


async def test_many_are_looked_up_together_without_what_they_ask(path: Path) -> None:
    async with Outbox(path, group_commit_ms=60_000) as outbox:
        for id_ in ("open", "ended"):
            _ = outbox.accept(spill(id_, edge=EDGE))
        await outbox.counts()
        await settle(outbox, spill("ended"))
        _ = outbox.accept(spill("fresh"))
        ids = ("open", "ended", "fresh", "nobodys")
        found = await outbox.get_all([("cam1", id_) for id_ in ids])
        assert {key[1] for key in found} == {"open", "fresh"}
        assert found["cam1", "open"].request == b""
        assert found["cam1", "open"].edge is not None


async def test_many_rows_are_written_before_their_window_ends(path: Path) -> None:
    async with Outbox(path, group_commit_ms=60_000) as outbox:
        accepted = [outbox.accept(spill(f"r{n}")) for n in range(64)]
        async with asyncio.timeout(10):
            assert await asyncio.gather(*accepted) == [Committed()] * 64


# --- quotas ------------------------------------------------------------------------------


async def test_a_device_over_its_quota_is_refused_by_name_and_others_are_not(
    path: Path,
) -> None:
    limits = QuotaLimits(device_max_rows=2, device_max_bytes=2500)
    async with Outbox(path, limits=limits) as outbox:
        await asyncio.gather(*(outbox.accept(spill(id_)) for id_ in "ab"))
        with pytest.raises(OutboxFull, match=r"cam1 has 2 requests .*device_max_rows"):
            _ = outbox.accept(spill("c"))
        assert await outbox.accept(spill("c", "cam2")) == Committed()
    async with Outbox(path, limits=limits) as outbox:  # Restored with the rows.
        with pytest.raises(OutboxFull) as refused:
            _ = outbox.accept(spill("d"))
        assert refused.value.full is Full.DEVICE_ROWS
        assert refused.value.retry_after_s == 5.0  # Nothing is known yet.
        large = spill("large", "cam2", request=bytes(2000))
        with pytest.raises(OutboxFull, match=r"1000 bytes waiting .*device_max_bytes"):
            _ = outbox.accept(large)
        await settle(outbox, spill("a"))
        assert await outbox.accept(spill("d")) == Committed()
        with pytest.raises(OutboxFull) as refused:
            _ = outbox.accept(spill("e"))
        assert 1.0 <= refused.value.retry_after_s <= 300.0


# --- answers that nobody takes -------------------------------------------------------------


async def test_an_answer_that_nobody_takes_is_recorded_as_undelivered_and_then_forgotten(
    path: Path,
) -> None:
    async with Outbox(path) as outbox:
        for id_ in "abc":
            await outbox.accept(spill(id_))
        for id_, ended_ms in (("a", 1.0), ("b", 2.0), ("c", 50.0)):
            await outbox.settle(
                ("cam1", id_), Outcome.ANSWERED, b"ok", ended_ms=NOW_MS + ended_ms
            )
        lost = await outbox.give_up_untold(NOW_MS + 40, NOW_MS + 1000)
        assert lost == [("cam1", "a"), ("cam1", "b")]
        counts = await outbox.counts()
        assert (counts.untold, counts.ledger.undelivered) == (1, 2)
        # It answers a resent id for a while yet, and the record stands.
        recorded = await outbox.find(("cam1", "a"))
        assert recorded == Recorded(Stage.UNDELIVERED, "json", Outcome.ANSWERED, b"ok")
        await outbox.mark_told([("cam1", "a")], NOW_MS + 1001)
        assert ids_in(path, "stage = 3") == {"a", "b"}
        assert await outbox.forget_closed(NOW_MS + 1000) == 0
        assert await outbox.forget_closed(NOW_MS + 1001) == 2
        ledger = (await outbox.counts()).ledger
        assert (ledger.undelivered, ledger.balanced) == (2, True)


# --- the ledger ----------------------------------------------------------------------------


async def test_the_ledger_counts_all_that_was_accepted_and_survives_a_restart(
    path: Path,
) -> None:
    async with Outbox(path, group_commit_ms=60_000) as outbox:
        _ = outbox.accept(spill("hard"))
        _ = outbox.accept(spill("forced", reason=Reason.FORCED))
        _ = outbox.accept(spill("open"))
        await outbox.counts()
        _ = outbox.accept(spill("overtaken"))  # Ends before its commit.
        await settle(outbox, spill("overtaken"))
        await outbox.settle(
            ("cam1", "hard"),
            Outcome.FAILED,
            b"",
            ended_ms=NOW_MS,
            why=Why.CANCELLED,
        )
        await outbox.settle(
            ("cam1", "forced"),
            Outcome.EXPIRED,
            b"",
            ended_ms=NOW_MS,
            why=Why.DEADLINE,
        )
    async with Outbox(path) as outbox:
        ledger = (await outbox.counts()).ledger
    assert ledger.accepted == {"hard": 3, "forced": 1}
    assert ledger.ended == {
        ("answered", "cloud"): 1,
        ("failed", "cancelled"): 1,
        ("expired", "deadline"): 1,
    }
    assert (ledger.waiting, ledger.balanced) == (1, True)


async def test_a_row_that_vanishes_unbalances_the_ledger(path: Path) -> None:
    async with Outbox(path) as outbox:
        await outbox.accept(spill("a"))
        assert (await outbox.counts()).ledger.balanced
        with second_look(path) as other:
            other.execute("DELETE FROM spill")
        ledger = (await outbox.counts()).ledger
        assert (ledger.missing, ledger.balanced) == (1, False)


async def test_a_refused_write_is_counted_nowhere(path: Path) -> None:
    async with Outbox(path) as outbox:
        await outbox.accept(spill("kept"))
        fill(outbox)
        with pytest.raises(OutboxFull, match="could not be written"):
            await outbox.accept(spill("a", request=bytes(100_000)))
        make_room(outbox)
        await outbox.accept(spill("b"))
        ledger = (await outbox.counts()).ledger
        assert ledger.accepted == {"hard": 2}
        assert ledger.balanced


async def test_an_outbox_of_the_first_schema_is_carried_over(path: Path) -> None:
    with second_look(path) as db:
        db.executescript(SCHEMA_1)
        for number, (stage, outcome, attempt) in enumerate(
            [(0, None, 0), (0, None, 2), (1, "failed", 1), (2, "answered", 1)]
        ):
            db.execute(
                "INSERT INTO spill VALUES "
                "(NULL,'cam1',?,'fashion',1,'hard','mqtt','json',?,NULL,?,?,?,?,?,?,?,?)",
                (
                    f"r{number}",
                    b"x" if stage == 0 else None,
                    *(NOW_MS, FAR_MS, NOW_MS, attempt, stage, outcome),
                    None if outcome is None else b"ok",
                    None if outcome is None else NOW_MS,
                ),
            )
        # One more was answered and forgotten.
        db.execute("UPDATE tally SET count = 2 WHERE outcome = 'answered'")
        db.execute("UPDATE tally SET count = 1 WHERE outcome = 'failed'")
    async with Outbox(path) as outbox:
        counts = await outbox.counts()
        assert (counts.open, counts.answered, counts.failed) == (2, 2, 1)
        assert counts.ledger.accepted == {"hard": 4, "unknown": 1}
        assert counts.ledger.balanced
        claimed = await outbox.claim_due(
            NOW_MS, limit=10, max_bytes=10**6, next_due_ms=after(100)
        )
        assert {(each.id, each.attempt) for each in claimed} == {("r0", 1), ("r1", 3)}
        assert [key for key, _, _ in await outbox.untold()] == [("cam1", "r2")]
        assert await outbox.forget_closed(NOW_MS + 1) == 1


SCHEMA_1 = """
CREATE TABLE spill (
  seq INTEGER PRIMARY KEY, device TEXT NOT NULL, id TEXT NOT NULL,
  model TEXT NOT NULL, priority INTEGER NOT NULL, reason TEXT NOT NULL,
  channel TEXT NOT NULL, encoding TEXT NOT NULL, request BLOB, edge BLOB,
  accepted_ms REAL NOT NULL, deadline_ms REAL NOT NULL, due_ms REAL NOT NULL,
  attempt INTEGER NOT NULL, stage INTEGER NOT NULL, outcome TEXT, answer BLOB,
  ended_ms REAL, UNIQUE (device, id)
) STRICT;
CREATE INDEX open_by_due ON spill (priority, due_ms) WHERE stage = 0;
CREATE INDEX open_by_deadline ON spill (deadline_ms) WHERE stage = 0;
CREATE INDEX untold ON spill (seq) WHERE stage = 1;
CREATE INDEX told_by_end ON spill (ended_ms) WHERE stage = 2;
CREATE TABLE tally (outcome TEXT PRIMARY KEY, count INTEGER NOT NULL) STRICT;
INSERT INTO tally VALUES ('answered', 0), ('failed', 0), ('expired', 0);
PRAGMA journal_mode = WAL;
PRAGMA user_version = 1;
"""
