"""The queues of a broker: declaring them, and looking how they stand."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import aio_pika
from aiormq.abc import AbstractChannel as Channel
from aiormq.exceptions import (
    ChannelAccessRefused,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
)

from broker.amqp.connection import (
    CALL_TIMEOUT_S,
    LOST,
    Cluster,
    only_own_cancellation,
    open_channel,
    text_of,
)
from broker.link import LinkDown
from broker.topology import Queue


class NoSuchQueue(LookupError):
    """The broker has no queue of that name."""


class QueueRefused(LinkDown):
    """A link is refused a queue, and is of no use without it; says what to do."""


@dataclass(frozen=True, slots=True)
class QueueLook:
    """A queue at one moment: messages ready to be delivered, and who consumes it."""

    ready: int
    consumers: int


async def declare(cluster: Cluster, channel: Channel, queue: Queue) -> None:
    """Have a queue and its binding, whether or not they were there.

    Raises:
        QueueRefused: it is another one, or it may not be; the channel is closed then.
    """
    try:
        await channel.queue_declare(
            queue.name,
            durable=not queue.exclusive,
            exclusive=queue.exclusive,
            arguments=dict(queue.arguments),
        )
        await channel.queue_bind(queue.name, queue.exchange, queue.routing_key)
    except ChannelPreconditionFailed as error:
        raise QueueRefused(
            f"queue {queue.name!r} exists at {cluster.where} with other arguments "
            f"({text_of(error)}): empty and delete it, then it is declared anew"
        ) from error
    except ChannelAccessRefused as error:
        raise QueueRefused(
            f"user {cluster.user!r} may not declare queue {queue.name!r} at "
            f"{cluster.where} ({text_of(error)}): load the rendered definitions"
        ) from error
    except ChannelNotFoundEntity as error:
        raise QueueRefused(
            f"{cluster.where} lacks the exchange {queue.exchange!r} of queue "
            f"{queue.name!r}: load the rendered definitions"
        ) from error


class Inspector:
    """Looks at queues on a channel of its own, which an absent queue closes.

    Attributes:
        alone: held by who asks; two at once would share the end of the channel.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.alone = asyncio.Lock()
        self._cluster = cluster
        self._channel: Channel | None = None

    async def renew(self, connection: aio_pika.Connection) -> Channel:
        """A new channel, whatever became of the last."""
        self._channel = await open_channel(connection)
        return self._channel

    async def channel(self, connection: aio_pika.Connection) -> Channel:
        """The channel, or a new one when the last was closed."""
        if self._channel is None or self._channel.is_closed:
            return await self.renew(connection)
        return self._channel

    def forget(self) -> None:
        """The connection ends, and the channel with it."""
        self._channel = None

    async def look(self, connection: aio_pika.Connection, queue: str) -> QueueLook:
        """How a queue stands at the broker now.

        Raises:
            NoSuchQueue: the broker does not have it.
            LinkDown: the connection was lost.
        """
        where = self._cluster.where
        try:
            async with self.alone, asyncio.timeout(CALL_TIMEOUT_S):
                with only_own_cancellation():
                    channel = await self.channel(connection)
                    found = await channel.queue_declare(queue, passive=True)
        except ChannelNotFoundEntity:
            raise NoSuchQueue(f"{where} has no queue {queue!r}") from None
        except LOST as error:
            raise LinkDown(f"{self._cluster.down(None)} ({text_of(error)})") from error
        return QueueLook(found.message_count or 0, found.consumer_count or 0)
