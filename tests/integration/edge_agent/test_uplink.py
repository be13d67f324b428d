"""The uplink with a real outbox; the link is a fake that the test holds in its hand."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from broker.codec import decode, pack
from broker.link import LinkDown, PublishTimeout
from broker.messages import Priority, Reason, Request, Tensor
from edge_agent.adapters.outbox import Committed, Outbox
from edge_agent.core.delivery import Spill
from edge_agent.loops.uplink import Uplink, UplinkLimits
from lifecycle.clock import SteadyTime, SystemClock
from tests.spills import open_spill
from tests.waiting import until

now_ms = SteadyTime(SystemClock()).now_ms


class Wire:
    """A link that keeps what was published, and acknowledges when it may."""

    def __init__(self) -> None:
        self.up = True
        self.sent: list[tuple[str, list[Request]]] = []
        self.sizes: list[int] = []
        self.under_way = self.most_under_way = 0
        self.acknowledge = asyncio.Event()
        self.acknowledge.set()
        self.failure: type[LinkDown] | None = None

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        timeout_s: float = 10.0,
    ) -> Awaitable[None]:
        if not self.up:
            raise LinkDown("the test took the link down")
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        self.sizes.append(len(payload))
        self.sent.append((topic, list(decode(payload, Request).items)))
        return self._acknowledged()

    async def _acknowledged(self) -> None:
        try:
            await self.acknowledge.wait()
            if self.failure is not None:
                raise self.failure("the test spoiled it")
        finally:
            self.under_way -= 1

    @property
    def ids(self) -> list[str]:
        return [each.id for _, requests in self.sent for each in requests]


def spill(id_: str, *, size: int = 10, **more: Any) -> Spill:
    now = now_ms()
    tensor = Tensor(dtype="uint8", shape=[size], data=bytes(size))
    wire = Request(
        id=id_,
        device="cam1",
        model="fashion",
        reason=Reason.HARD,
        expires_at_ms=round(now) + 60_000,
        tensors={"x": tensor},
    )
    return open_spill(id_, now_ms=now, left_ms=60_000, request=pack(wire), **more)


@pytest.fixture
async def outbox(tmp_path: Path) -> AsyncIterator[Outbox]:
    async with Outbox(tmp_path / "outbox.db", group_commit_ms=1) as opened:
        yield opened


@asynccontextmanager
async def running(outbox: Outbox, wire: Wire, **limits: Any) -> AsyncIterator[Uplink]:
    usual: dict[str, Any] = {
        "window": 20,
        "envelope_items": 32,
        "envelope_bytes": 2**18,
        "resend_first_s": 60.0,
        "resend_most_s": 120.0,
    }
    uplink = Uplink(
        agent="edge",
        link=wire,
        outbox=outbox,
        limits=UplinkLimits(**{**usual, **limits}),
        now_ms=now_ms,
        rng=random.Random(1),
    )
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(uplink.run())
        await asyncio.sleep(0)
        yield uplink
        task.cancel()


async def take(outbox: Outbox, *spills: Spill) -> None:
    assert await asyncio.gather(*map(outbox.accept, spills)) == [Committed()] * len(
        spills
    )


async def test_a_fresh_spill_is_sent_at_once_and_not_again_before_its_time(
    outbox: Outbox,
) -> None:
    wire = Wire()
    async with running(outbox, wire) as uplink:
        each = spill("r1", due_ms=uplink.resend_at_ms(0), attempt=1)
        assert uplink.has_room(len(each.request))
        accepted = outbox.accept(each)
        uplink.offer(each)
        assert wire.ids == ["r1"]
        assert not accepted.done()
        assert await accepted == Committed()
        uplink.nudge()
        await outbox.counts()
        await asyncio.sleep(0.6)  # Longer than it takes to look again.
        assert wire.ids == ["r1"]
    assert wire.sent[0][0] == "e1/edge/up/req/fashion/norm"
    assert wire.sent[0][1][0].attempt == 0
    assert uplink.counters.resent == 0


async def test_a_spill_without_an_answer_is_sent_again_and_counted(
    outbox: Outbox,
) -> None:
    wire = Wire()
    async with running(outbox, wire, resend_first_s=0.05, resend_most_s=0.1) as uplink:
        each = spill("r1", due_ms=uplink.resend_at_ms(0), attempt=1)
        _ = outbox.accept(each)
        uplink.offer(each)
        await until(lambda: len(wire.ids) >= 3)
        assert uplink.counters.resent >= 2
    attempts = [requests[0].attempt for _, requests in wire.sent]
    assert attempts[:3] == [0, 1, 2]
    assert wire.sent[0][1][0].tensors == wire.sent[2][1][0].tensors


async def test_a_backlog_travels_together_the_most_urgent_class_first(
    outbox: Outbox,
) -> None:
    wire = Wire()
    wire.up = False
    spills = [spill(f"n{n}") for n in range(70)]
    spills += [spill(f"b{n}", priority=Priority.BULK) for n in range(3)]
    spills += [spill(f"h{n}", priority=Priority.HI) for n in range(5)]
    await take(outbox, *spills)
    async with running(outbox, wire) as uplink:
        assert not uplink.has_room(10)
        wire.up = True
        uplink.link_changed(up=True)
        await until(lambda: len(wire.ids) == len(spills))
        # Counted as first sends, not as repeated ones.
        assert uplink.counters.resent == 0
    classes = [topic.rpartition("/")[2] for topic, _ in wire.sent]
    assert classes == ["hi", "norm", "norm", "norm", "bulk"]
    assert [len(requests) for _, requests in wire.sent] == [5, 32, 32, 6, 3]
    assert sorted(wire.ids) == sorted(each.id for each in spills)


async def test_an_envelope_is_bounded_in_bytes_and_the_window_in_publishes(
    outbox: Outbox,
) -> None:
    wire = Wire()
    wire.acknowledge.clear()
    await take(outbox, *(spill(f"r{n}", size=40_000) for n in range(40)))
    async with running(outbox, wire, window=3, envelope_bytes=100_000) as uplink:
        await until(lambda: wire.under_way == 3)
        await asyncio.sleep(0.05)
        assert len(wire.sent) == 3
        wire.acknowledge.set()
        await until(lambda: len(wire.ids) == 40)
        assert uplink.counters.envelopes == 20
    assert wire.most_under_way == 3
    assert max(wire.sizes) <= 100_000 + 1000
    assert sorted(wire.ids) == sorted(f"r{n}" for n in range(40))


@pytest.mark.parametrize("failure", [LinkDown, PublishTimeout])
async def test_what_was_not_acknowledged_is_sent_again_at_once(
    outbox: Outbox, failure: type[LinkDown]
) -> None:
    wire = Wire()
    wire.failure = failure
    wire.acknowledge.clear()
    async with running(outbox, wire) as uplink:
        each = spill("r1", due_ms=uplink.resend_at_ms(0), attempt=1)
        await take(outbox, each)
        uplink.offer(each)
        await until(lambda: wire.under_way == 1)
        wire.acknowledge.set()
        await until(lambda: uplink.counters.send_failures >= 1)
        wire.failure = None
        uplink.link_changed(up=True)
        await until(lambda: uplink.counters.sent == 1)
    assert wire.ids[0] == wire.ids[-1] == "r1"


async def test_while_the_disk_fails_nothing_is_lost_and_sending_goes_on_after(
    outbox: Outbox,
) -> None:
    wire = Wire()
    await take(outbox, spill("r1"))
    db = outbox._table._db
    db.execute(
        "CREATE TRIGGER broken BEFORE UPDATE ON spill "
        "BEGIN SELECT RAISE(ABORT, 'disk I/O error'); END"
    )
    async with running(outbox, wire) as uplink:
        await asyncio.sleep(0.1)
        assert wire.sent == []
        db.execute("DROP TRIGGER broken")
        uplink.nudge()
        await until(lambda: wire.ids == ["r1"])


async def test_a_backlog_leaves_in_order_of_its_deadlines(outbox: Outbox) -> None:
    wire = Wire()
    await take(
        outbox,
        *(
            spill(f"r{n}", deadline_ms=now_ms() + 10_000.0 + 1000.0 * (n * 7 % 20))
            for n in range(20)
        ),
        spill("over", deadline_ms=now_ms() - 1.0),
    )
    async with running(outbox, wire, envelope_items=5):
        await until(lambda: len(wire.ids) == 20)
    assert wire.ids == [f"r{n}" for n in sorted(range(20), key=lambda n: n * 7 % 20)]


async def test_the_window_opens_on_a_good_link_and_closes_when_it_breaks(
    outbox: Outbox,
) -> None:
    wire = Wire()
    await take(outbox, *(spill(f"r{n}") for n in range(100)))
    async with running(outbox, wire, envelope_items=1) as uplink:
        assert uplink.window < 20
        await until(lambda: len(wire.ids) == 100)
        await until(lambda: uplink.window == 20)
        wire.failure = LinkDown
        wire.acknowledge.clear()
        await take(outbox, *(spill(f"s{n}") for n in range(20)))
        uplink.nudge()
        await until(lambda: wire.under_way == 20)
        wire.up = False
        wire.acknowledge.set()
        await until(lambda: uplink.counters.send_failures == 20)
        assert uplink.window == 10  # Lost together, they count once.
