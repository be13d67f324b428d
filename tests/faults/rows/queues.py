"""Somebody deletes, at RabbitMQ, what requests and results travel through."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import aio_pika

from broker.messages import Priority
from broker.topology import TOPIC_EXCHANGE, Queue, request_queue
from tests.faults.row import Row
from tests.faults.rows.network import Roads, roads
from tests.faults.stage import Stage

QUEUE = request_queue("copy", Priority.NORM)
SESSION = "mqtt-subscription-agent-1qos1"
LIMIT = 20
LIMIT_POLICY = "fault-limit"
TIMES = 5
RESULTS_WAIT_S = 30.0

Deed = Callable[[aio_pika.abc.AbstractChannel], Awaitable[object]]


@asynccontextmanager
async def admin(stage: Stage) -> AsyncIterator[aio_pika.abc.AbstractChannel]:
    """A channel that may do anything."""
    connection = await aio_pika.connect(stage.node.amqp_url("admin"), timeout=10)
    async with connection:
        yield await connection.channel()


async def delete_queue(channel: aio_pika.abc.AbstractChannel) -> None:
    await channel.queue_delete(QUEUE.name)


async def delete_binding(channel: aio_pika.abc.AbstractChannel) -> None:
    queue = await channel.get_queue(QUEUE.name, ensure=False)
    await queue.unbind(QUEUE.exchange, QUEUE.routing_key)


async def delete_session(channel: aio_pika.abc.AbstractChannel) -> None:
    await channel.queue_delete(SESSION)


async def deleted(deed: Deed, stage: Stage) -> None:
    """Under load, again and again."""
    async with roads(stage) as both, admin(stage) as channel:
        await stage.load(stage.n(20))
        load = stage.background(stage.load(stage.n(300), rate=40))
        async with stage.fault("deletions"):
            with bounded(both, 3 * TIMES):
                for _ in range(TIMES):
                    # The fault itself: at any moment, before all is mended too.
                    await asyncio.sleep(stage.random.uniform(0.5, 1.5))
                    await deed(channel)
        await load
        await stage.until_ended()
        failed = [
            id_
            for device in stage.devices
            for id_, status in device.ended.items()
            if status != "answered"
        ]
        assert not failed, f"{len(failed)} could have been answered, e.g. {failed[:3]}"


async def session_deleted_while_away(stage: Stage) -> None:
    """The agent's session expires while its road is cut, with results in it."""
    async with roads(stage) as both, admin(stage) as channel:
        await stage.load(stage.n(20))
        async with stage.fault("the session expires"):
            both.gateway.keep = False
            worker = stage.workers["w1"]
            worker.signal(signal.SIGSTOP)
            status = await both.gateway.status()
            sent = status["counters"]["sent"]
            await stage.load(stage.n(100))
            await stage.until_status(
                both.gateway, lambda now: now["counters"]["sent"] > sent
            )
            both.gateway.agent.signal(signal.SIGKILL)
            await both.gateway.agent.ended()
            worker.signal(signal.SIGCONT)
            await _until_results_wait(channel)
            await delete_session(channel)
            both.gateway.keep = True
            await stage.restarted(both.gateway)
        await stage.until_ended()


async def _until_results_wait(channel: aio_pika.abc.AbstractChannel) -> None:
    async with asyncio.timeout(RESULTS_WAIT_S):
        while not await _ready(channel, SESSION):  # noqa: ASYNC110 - RabbitMQ tells no event
            await asyncio.sleep(0.05)


async def _ready(channel: aio_pika.abc.AbstractChannel, name: str) -> int:
    queue = await channel.declare_queue(name, passive=True)
    return queue.declaration_result.message_count or 0


async def limit_drops(stage: Stage) -> None:
    """The queue is at its length limit and drops its oldest."""
    async with roads(stage) as both:
        pattern = "^" + QUEUE.name.replace(".", "\\.") + "$"
        worker = stage.workers["w1"]
        await stage.load(stage.n(20))
        async with stage.fault("queue at its limit"):
            limit = json.dumps({"max-length": LIMIT})
            await stage.node.control("set_policy", LIMIT_POLICY, pattern, limit)
            try:
                worker.signal(signal.SIGSTOP)
                status = await both.gateway.status()
                count = stage.n(400)
                sent = status["counters"]["sent"] + count * len(stage.devices)
                await stage.load(count)
                await stage.until_status(
                    both.gateway, lambda now: now["counters"]["sent"] >= sent, 60
                )
                worker.signal(signal.SIGCONT)
                await stage.until_ended()
            finally:
                await stage.node.control("clear_policy", LIMIT_POLICY)


async def limit_rejects(stage: Stage) -> None:
    """The queue is full and rejects: 3.10 cuts the agent's connection, 4 is silent."""
    async with roads(stage) as both, admin(stage) as channel:
        await stage.load(stage.n(20))
        await stage.until(lambda: not any(device.open for device in stage.devices))
        await stage.workers["w1"].stop()
        rejecting = {"x-overflow": "reject-publish", "x-max-length": 1}
        async with stage.fault("a full queue rejects"):
            await delete_queue(channel)
            await declare(channel, QUEUE, {**rejecting, "x-queue-type": "quorum"})
            with bounded(both, 12):
                await stage.load(stage.n(100))
                await asyncio.sleep(12.0)  # the fault itself
            await delete_queue(channel)
            await stage.workers["w1"].start()
        await stage.until_ended(120)


async def declare(
    channel: aio_pika.abc.AbstractChannel, queue: Queue, arguments: dict[str, object]
) -> None:
    made = await channel.declare_queue(
        queue.name,
        durable=True,
        arguments=arguments,  # type: ignore[arg-type] # strings and numbers
    )
    await made.bind(TOPIC_EXCHANGE, queue.routing_key)


@contextlib.contextmanager
def bounded(both: Roads, most: int) -> Iterator[None]:
    """No hot loop: at most so many connections are made meanwhile, on either road."""
    before = both.agent.accepted, both.worker.accepted // 2
    yield
    made = both.agent.accepted - before[0], both.worker.accepted // 2 - before[1]
    assert max(made) <= most, f"agent and worker connected {made} times"


def _row(name: str, fault: str, deed: Deed, *, fast: bool = False) -> Row:
    return Row(
        name=name,
        fault=fault,
        must_hold="every request is answered all the same; no hot loop of reconnects",
        run=functools.partial(deleted, deed),
        fast=fast,
    )


ROWS: tuple[Row, ...] = (
    _row("queue-deleted", "the queue is deleted under load", delete_queue, fast=True),
    _row("binding-deleted", "its binding is deleted under load", delete_binding),
    _row("session-deleted", "the agent's session queue is deleted", delete_session),
    Row(
        name="session-expired",
        fault="the agent's session expires while it is away, with results in it",
        must_hold="every request ends in an outcome",
        run=session_deleted_while_away,
        most_gap_s=20.0,
    ),
    Row(
        name="queue-full-drops",
        fault="the queue is at its length limit and drops its oldest",
        must_hold="what is dropped is `failed` with the reason, the rest answered",
        run=limit_drops,
    ),
    Row(
        name="queue-full-rejects",
        fault="the queue is at its length limit and rejects",
        must_hold="every request ends in an outcome; no hot loop of reconnects",
        run=limit_rejects,
    ),
)
