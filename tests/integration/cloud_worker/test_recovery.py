"""What a worker survives while a batch is in its runner: it recovers by itself.

The runner is stopped, so that the batch is certainly in hand when it happens.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aio_pika
import pytest

from broker.messages import Priority, Status
from broker.node import Node
from broker.topology import request_queue
from tests.integration.cloud_worker.pool import (
    Agent,
    WorkerProcess,
    repository,
    request,
)
from tests.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


@asynccontextmanager
async def one_in_hand(
    rabbit: Node, models: Path, agent: Agent, model: str
) -> AsyncIterator[WorkerProcess]:
    """A worker that has a request in its runner, which stands still."""
    async with WorkerProcess(
        rabbit.amqp_url("worker"),
        models,
        OVERSPILL_WORKER_INLINE_BELOW_MS="0",
        OVERSPILL_WORKER_BATCH_TIMEOUT_S="120",
    ) as worker:
        await worker.ready()
        worker.stop_model()
        await agent.ask(request("held", model))
        await until_taken(rabbit, model)
        yield worker


@asynccontextmanager
async def admin(rabbit: Node) -> AsyncIterator[aio_pika.abc.AbstractChannel]:
    connection = await aio_pika.connect(rabbit.amqp_url("admin"), timeout=10)
    async with connection:
        yield await connection.channel()


async def until_taken(rabbit: Node, model: str) -> None:
    """Return once the worker has what was sent: its queue is empty."""
    name = request_queue(model, Priority.NORM).name
    async with admin(rabbit) as channel, asyncio.timeout(20):
        while True:
            queue = await channel.declare_queue(name, passive=True)
            if queue.declaration_result.message_count == 0:
                return
            await asyncio.sleep(0.02)


def said(worker: WorkerProcess, what: str) -> int:
    return sum(what in line for line in worker.said)


async def test_a_broker_that_restarts_mid_batch_gets_its_answer_from_the_next_try(
    rabbit: Node, tmp_path: Path
) -> None:
    models = repository(tmp_path, it_restart="line_lite")
    async with (
        # It may be back later than the worker, as an agent may.
        Agent(rabbit, persistent=True) as agent,
        one_in_hand(rabbit, models, agent, "it-restart") as worker,
    ):
        await rabbit.control("stop_app")
        await until(lambda: said(worker, '"link down"'))
        worker.resume_model()
        await rabbit.control("start_app")
        await until(lambda: said(worker, '"link up"') >= 4)
        assert (await agent.result("held")).status is Status.OK
        await agent.ask(request("after", "it-restart"))
        assert (await agent.result("after")).status is Status.OK
        assert len(agent.results["held"]) == 1
        assert not said(worker, "ledger_mismatch")


async def test_a_queue_that_is_deleted_mid_batch_is_made_again_and_consumed(
    rabbit: Node, tmp_path: Path
) -> None:
    models = repository(tmp_path, it_deleted="line_lite")
    async with (
        Agent(rabbit) as agent,
        one_in_hand(rabbit, models, agent, "it-deleted") as worker,
        admin(rabbit) as channel,
    ):
        await channel.queue_delete(request_queue("it-deleted", Priority.NORM).name)
        # RabbitMQ cancels the consumer, and the worker is told.
        await until(lambda: said(worker, "was deleted or lost its leader"))
        worker.resume_model()
        await until(
            lambda: said(worker, "consuming") and said(worker, '"link up"') >= 3
        )
        await agent.ask(request("after", "it-deleted"))
        assert (await agent.result("after")).status is Status.OK
        assert not said(worker, "ledger_mismatch")


async def test_a_channel_closed_by_a_consumer_timeout_is_opened_again(
    rabbit: Node, tmp_path: Path
) -> None:
    models = repository(tmp_path, it_timeout="line_lite")
    async with (
        Agent(rabbit) as agent,
        short_consumer_timeout(rabbit),
        one_in_hand(rabbit, models, agent, "it-timeout") as worker,
    ):
        # What is held for too long is taken away, with the channel that held it.
        await until(lambda: said(worker, "delivery acknowledgement on channel"))
        worker.resume_model()
        assert (await agent.result("held")).status is Status.OK
        await agent.ask(request("after", "it-timeout"))
        assert (await agent.result("after")).status is Status.OK
        assert not said(worker, "ledger_mismatch")


@asynccontextmanager
async def short_consumer_timeout(rabbit: Node) -> AsyncIterator[None]:
    """The broker gives a delivery a second, and looks twice in that time."""
    was = await set_of_rabbit(rabbit, consumer_timeout="1000", tick="500")
    try:
        yield
    finally:
        await set_of_rabbit(rabbit, **was)


async def set_of_rabbit(
    rabbit: Node, *, consumer_timeout: str, tick: str
) -> dict[str, str]:
    """Change two knobs of the running node; gives what they were."""
    names = {"consumer_timeout": consumer_timeout, "channel_tick_interval": tick}
    looks = ", ".join(
        f"element(2, application:get_env(rabbit, {name}))" for name in names
    )
    sets = ", ".join(
        f"application:set_env(rabbit, {name}, {value})" for name, value in names.items()
    )
    answer = await rabbit.control("eval", f"Was = {{{looks}}}, {sets}, Was.")
    before = answer.strip().strip("{}").split(",")
    return dict(zip(("consumer_timeout", "tick"), before, strict=True))
