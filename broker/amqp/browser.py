"""Looking at the messages of a queue, one after the other, without taking them out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import aio_pika
from aiormq.abc import AbstractChannel as Channel
from aiormq.exceptions import ChannelLockedResource, ChannelNotFoundEntity
from pamqp.commands import Basic

from broker.amqp.connection import (
    CALL_TIMEOUT_S,
    CLOSE_TIMEOUT_S,
    LOST,
    only_own_cancellation,
    open_channel,
    translated,
)
from broker.amqp.consumer import Consumer
from broker.amqp.delivery import Delivery
from broker.amqp.queues import NoSuchQueue
from broker.link import LinkDown


class QueueInUse(Exception):
    """Somebody else looks at the queue."""


class Browser:
    """A look at the messages of one queue, in their order; see `AmqpLink.browse`.

    Attributes:
        count: how many messages there were when it began.
    """

    def __init__(self, queue: str, channel: Channel, count: int) -> None:
        self.count = count
        self._channel = channel
        self._consumer = Consumer(queue, channel)

    async def next(self) -> Delivery | None:
        """The next message, or None when there is no other.

        Raises:
            LinkDown: the connection was lost; what was not removed is in the queue.
        """
        with translated():
            message = await self._channel.basic_get(
                self._consumer.queue, timeout=CALL_TIMEOUT_S
            )
        if isinstance(message.delivery, Basic.GetEmpty):
            return None
        return Delivery(self._consumer, message, lambda _: None)

    async def remove(self, delivery: Delivery) -> None:
        """Have the broker forget a message that this browser gave.

        Raises:
            LinkDown: the connection was lost; it may be in the queue or not.
        """
        delivery.ack()
        with translated():
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await self._consumer.acknowledge(written=True)


@contextlib.asynccontextmanager
async def browse(
    connection: aio_pika.Connection, where: str, queue: str
) -> AsyncIterator[Browser]:
    """Look at a queue, alone; see `AmqpLink.browse`.

    Args:
        connection: to the broker.
        where: the broker, for errors.
        queue: its name.
    """
    lock = f"{queue}.browsed"
    with translated():
        async with asyncio.timeout(CALL_TIMEOUT_S):
            door = await open_channel(connection)
            try:
                # Gone with the connection that made it, whatever ends that.
                await door.queue_declare(lock, exclusive=True)
                found = await door.queue_declare(queue, passive=True)
            except ChannelLockedResource:
                raise QueueInUse(f"queue {queue!r} is in use") from None
            except ChannelNotFoundEntity:
                raise NoSuchQueue(f"{where} has no queue {queue!r}") from None
            channel = await open_channel(connection)
    try:
        yield Browser(queue, channel, found.message_count or 0)
    finally:
        with contextlib.suppress(*LOST, LinkDown), only_own_cancellation():
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await channel.close()
                await door.queue_delete(lock)
                await door.close()
