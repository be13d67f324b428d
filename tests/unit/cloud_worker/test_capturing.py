"""The line of what is to be kept: whatever the disk does, nothing waits for it."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from structlog.testing import capture_logs

from broker.messages import Reason, Result, Status
from broker.topics import RequestAddress
from cloud_worker.adapters.example_index import CannotKeep
from cloud_worker.adapters.example_store import Captured, Fill, Told
from cloud_worker.core.intake import Inputs
from cloud_worker.core.ledger import Cause, Ledger
from cloud_worker.core.line import Group, Item
from cloud_worker.core.replies import Finished
from cloud_worker.core.results import Subject
from cloud_worker.core.spec import ModelSpec, ServedModel
from cloud_worker.loops.capturing import Capturing, Fate
from cloud_worker.loops.parcels import Held, Parcel, Room
from lifecycle.clock import FakeClock
from tests.integration.cloud_worker.pool import request
from tests.waiting import until

MODEL = ServedModel(
    "line", "1", ModelSpec((), (), batched=True), max_batch=8, capture=True
)


class Delivery:
    """One that is there, and no more."""

    queue, routing_key, body, headers = "q", "k", b"", dict[str, object]()
    received_at, live = 0.0, True

    def ack(self) -> None: ...
    async def reject(self, requeue: bool) -> None: ...


class Disk:
    """A store whose disk fails, or hangs, as the test says."""

    def __init__(self) -> None:
        self.kept: list[str] = []
        self.fault: str | None = None
        self.answers = threading.Event()
        self.answers.set()

    def keep(self, captured: Iterable[Captured]) -> list[Told]:
        self.answers.wait(10)
        if self.fault is not None:
            raise CannotKeep(self.fault)
        some = list(captured)
        self.kept += [each.request.id for each in some]
        return [Told(each, kept=True, evicted=("audit",)) for each in some]

    def fill(self) -> dict[str, Fill]:
        return {"line": Fill(len(self.kept), 1)}


@asynccontextmanager
async def capturing(disk: Disk, **more: float) -> AsyncIterator[Capturing]:
    made = Capturing(disk, clock=FakeClock(), worker_says=None, **more)  # type: ignore[arg-type] # numbers all
    async with asyncio.TaskGroup() as group:
        task = group.create_task(made.run())
        yield made
        task.cancel()


def batch(
    *ids: str, cause: Cause = Cause.ANSWERED
) -> tuple[list[Item[Held]], list[Finished[Parcel]]]:
    items, finished = [], []
    for id_ in ids:
        asked = request(id_, "line")
        address = RequestAddress("agent-1", "line", asked.priority)
        parcel = Parcel(Delivery(), address, 1, Room(8, Ledger()))
        inputs = Inputs((("x", "float32", (1, 4)),), (b"",), 1)
        held = Held(parcel, Subject.of(asked), MODEL, inputs, asked=asked)
        group = Group("line", inputs.signature, 8, version="1")
        items.append(Item(group, asked.priority, 1.0, 1, held))
        result = Result(
            id=id_, device="cam1", model="line", status=Status.OK, version="1"
        )
        finished.append(Finished("agent-1", result, parcel, cause))
    return items, finished


def fates(made: Capturing) -> Counter[str]:
    counted: Counter[str] = Counter()
    for (_, _, fate), count in made.counts.items():
        counted[fate.value] += count
    return counted


async def test_what_is_answered_is_kept_and_counted_by_its_reason() -> None:
    disk = Disk()
    async with capturing(disk) as made:
        made.offer(*batch("a", "b"))
        await made.finish(5)
        assert disk.kept == ["a", "b"]
        assert made.counts["line", Reason.HARD, Fate.KEPT] == 2
        assert made.counts["line", Reason.AUDIT, Fate.EVICTED] == 2
        assert made.fill["line"].examples == 2


async def test_what_failed_is_no_example() -> None:
    disk = Disk()
    async with capturing(disk) as made:
        made.offer(*batch("a", cause=Cause.MODEL))
        await made.finish(5)
        assert disk.kept == []


async def test_a_slow_disk_costs_examples_and_no_time() -> None:
    disk = Disk()
    disk.answers.clear()
    async with capturing(disk, max_waiting=4) as made:
        made.offer(*batch("first"))
        await asyncio.sleep(0)  # It is with the disk now, which takes its time.
        await asyncio.sleep(0)
        made.offer(*batch(*(f"r{number}" for number in range(10))))
        assert fates(made) == {"line_full": 6}
        disk.answers.set()
        await made.finish(5)
        assert disk.kept == ["first", "r0", "r1", "r2", "r3"]


async def test_a_full_disk_stops_the_keeping_until_it_has_room_again() -> None:
    disk = Disk()
    disk.fault = "No space left on device"
    with capture_logs() as logs:
        await _fill_and_free(disk)
    said = [each["event"] for each in logs]
    assert said.count("capture_stopped") == 1
    assert said.count("capture_goes_on") == 1


async def _fill_and_free(disk: Disk) -> None:
    async with capturing(disk, try_again_s=0.05) as made:
        for number in range(3):
            made.offer(*batch(f"lost-{number}"))
            await until(lambda: made.stopped is not None)
            # Nothing is remembered for a disk that takes nothing.
            assert made.stopped == "No space left on device"
            await until(lambda: made.wants(request("x", "line"), MODEL, 1))
        assert fates(made)["stopped"] >= 3
        disk.fault = None
        made.offer(*batch("kept"))
        await until(lambda: disk.kept)
        await until(lambda: made.stopped is None)


async def test_a_disk_that_hangs_holds_nothing_up() -> None:
    disk = Disk()
    disk.answers.clear()
    with capture_logs():
        await _hang_and_come_back(disk)


async def _hang_and_come_back(disk: Disk) -> None:
    async with capturing(disk, timeout_s=0.05) as made:
        made.offer(*batch("hangs"))
        await until(lambda: made.stopped is not None)
        assert not made.wants(request("x", "line"), MODEL, 1)
        await made.finish(5)  # At once: nothing waits that could be written.
        disk.answers.set()
        await until(lambda: made.stopped is None)
        assert disk.kept == ["hangs"]


async def test_who_may_not_be_kept_is_not_remembered() -> None:
    made = Capturing(Disk(), clock=FakeClock(), worker_says=None)
    forbidden = request("a", "line", capture=False)
    assert made.wants(request("a", "line"), MODEL, 1)
    assert not made.wants(forbidden, MODEL, 1)
    assert not made.wants(request("a", "line"), MODEL, 2)
    silent = ServedModel("line", "1", MODEL.spec, max_batch=8)
    assert not made.wants(request("a", "line"), silent, 1)
    assert not made.wants(forbidden, silent, 1)
    assert fates(made) == {"forbidden": 1, "several_rows": 1}
