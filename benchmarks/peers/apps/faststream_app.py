"""FastStream with RabbitMQ: one process that runs its application.

As it comes its queue is classic and not durable, its replies transient. Safe: a durable
quorum queue, persistent replies, a failed message goes back, and a prefetch.
"""

from __future__ import annotations

import asyncio

from faststream import AckPolicy, FastStream
from faststream.rabbit import (
    Channel,
    QueueType,
    RabbitBroker,
    RabbitMessage,
    RabbitQueue,
)

from benchmarks.peers.apps import served

if served.SAFE:
    broker = RabbitBroker(
        served.URL, default_channel=Channel(prefetch_count=2 * served.MAX_BATCH)
    )
    queue = RabbitQueue(served.QUEUE, queue_type=QueueType.QUORUM, durable=True)
    policy = AckPolicy.NACK_ON_ERROR
else:
    broker = RabbitBroker(served.URL)
    queue = RabbitQueue(served.QUEUE)
    policy = AckPolicy.REJECT_ON_ERROR
results = RabbitQueue(served.RESULTS, declare=False)
app = FastStream(broker)


@app.on_startup
async def load() -> None:
    await asyncio.to_thread(served.load)


@broker.subscriber(queue, ack_policy=policy)
@broker.publisher(results, persist=served.SAFE)
async def infer(body: bytes, message: RabbitMessage) -> bytes:
    model = str(message.headers["model"])
    if model == "noop":
        labels = served.answers(model, [body])
    else:
        labels = await asyncio.to_thread(served.answers, model, [body])
    return bytes(labels)


if __name__ == "__main__":
    asyncio.run(app.run())
