"""taskiq over taskiq-aio-pika: `taskiq worker … --workers 1`.

Its queues are quorum queues, its messages persistent, its publishes confirmed and its
acknowledgements late as it comes. It has no results over RabbitMQ, so a task answers by
a task for another broker object, which names the queue of results.
"""

from __future__ import annotations

import asyncio

from taskiq import TaskiqEvents, TaskiqState
from taskiq_aio_pika import AioPikaBroker, Queue, QueueType

from benchmarks.peers.apps import served

broker = AioPikaBroker(served.URL, task_queues=[Queue(name=served.QUEUE)])
answering = AioPikaBroker(
    served.URL, task_queues=[Queue(name=served.RESULTS, type=QueueType.CLASSIC)]
)


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def start(_: TaskiqState) -> None:
    await asyncio.to_thread(served.load)
    answering.is_worker_process = False
    await answering.startup()


@answering.task(task_name="report")
async def report(number: int, label: int) -> None:
    """Consumed by the benchmark."""


@broker.task(task_name="infer")
async def infer(number: int, model: str, data: str) -> None:
    body = served.decoded(data)
    if model == "noop":
        label = served.answers(model, [body])[0]
    else:
        label = (await asyncio.to_thread(served.answers, model, [body]))[0]
    await report.kiq(number, label)
