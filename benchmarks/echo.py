"""The bare road as a process: take from a quorum queue, publish back, acknowledge.

What the spill path is measured against: aio-pika and nothing around it.
"""

from __future__ import annotations

import asyncio
import sys

import aio_pika
from aio_pika.abc import AbstractIncomingMessage

from broker.messages import Priority
from broker.topology import request_queue


async def echo(url: str, model: str, reply_key: str) -> None:
    """Echo everything that is published for `model` to `reply_key`."""
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel(publisher_confirms=False)
        await channel.set_qos(prefetch_count=128)
        topic = await channel.get_exchange("amq.topic")
        declared = request_queue(model, Priority.NORM)
        queue = await channel.declare_queue(
            declared.name, durable=True, arguments=dict(declared.arguments)
        )
        await queue.bind(topic, declared.routing_key)

        async def on_message(message: AbstractIncomingMessage) -> None:
            reply = aio_pika.Message(
                message.body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT
            )
            await topic.publish(reply, reply_key)
            await message.ack()

        await queue.consume(on_message)
        print("READY", flush=True)
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(echo(*sys.argv[1:4]))
