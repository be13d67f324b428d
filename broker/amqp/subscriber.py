"""The connection that consumes: its queues are declared, bound and consumed each time."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final

import aio_pika
import structlog
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity

from broker.amqp.connection import (
    CALL_TIMEOUT_S,
    CLOSE_TIMEOUT_S,
    LOST,
    SETUP_TIMEOUT_S,
    Cluster,
    only_own_cancellation,
    open_channel,
    text_of,
)
from broker.amqp.consumer import Consumer, round_trip_s
from broker.amqp.delivery import Delivery
from broker.amqp.queues import Inspector, QueueLook, QueueRefused, declare
from broker.link import LinkDown, Standing
from broker.topology import Queue

log = structlog.get_logger(__name__)

Prefetch = int | Callable[[float], int]
"""Deliveries to hold unacknowledged, or how many for a round trip of some seconds."""

# How long an acknowledgement may wait for others to travel with.
ACK_DELAY_S: Final = 0.01


class CannotConsume(Exception):
    """The broker refuses a queue, or to deliver from it; says why and what to do."""


class Subscriber:
    """Consumes queues, and settles what they bring, while its connection lasts.

    `AmqpLink` says what its methods promise.

    Args:
        cluster: where to connect.
        standing: told when the connection works, and when it no longer does.
        queues: declared at each connect.
        consume: prefetch for each queue to consume.
        on_delivery: takes one delivery over.
    """

    def __init__(
        self,
        cluster: Cluster,
        standing: Standing,
        *,
        queues: Sequence[Queue],
        consume: Mapping[str, Prefetch],
        on_delivery: Callable[[Delivery], Awaitable[None]] | None,
    ) -> None:
        if consume and on_delivery is None:
            raise ValueError("a link that consumes needs on_delivery")
        self._cluster = cluster
        self._standing = standing
        # One queue may be bound more than once.
        self._queues = {_binding(queue): queue for queue in queues}
        self._first_queues = {queue.name for queue in queues}
        self._consume: dict[str, Prefetch] = dict(consume)
        self._on_delivery = on_delivery
        self._connection: aio_pika.Connection | None = None
        self._round_trip_s = 0.0
        self._inspector = Inspector(cluster)
        self._restored_s = -math.inf
        self._ended: asyncio.Future[None] | None = None
        self._grown: asyncio.Future[None] | None = None
        self._consumers: dict[str, Consumer] = {}
        self._changing = asyncio.Lock()
        self._owing = asyncio.Event()
        self._owing_many = asyncio.Event()
        self._stopped = False

    def connection(self) -> aio_pika.Connection:
        """The connection, once all queues are declared.

        Raises:
            LinkDown: there is none.
        """
        if self._connection is None:
            raise LinkDown(self._cluster.down(self._standing.last_error))
        return self._connection

    async def run_once(self) -> None:
        """Connect, consume and hold the connection until it ends.

        Raises:
            LinkDown: at its end, or when there is none.
        """
        async with self._cluster.connected("consume") as connection:
            ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            ended.add_done_callback(_read)  # it may end before anybody waits for it
            self._ended = ended
            try:
                async with self._changing:
                    with only_own_cancellation():
                        async with asyncio.timeout(SETUP_TIMEOUT_S):
                            await self._set_up(connection)
                self._standing.rise()
                await self._while_consuming(connection, ended)
            finally:
                # Closing throws away what was not yet written.
                await self._acknowledge(CLOSE_TIMEOUT_S, written=True)
                self._connection = None
                self._inspector.forget()
                self._consumers = {}
                self._standing.fall()

    async def acknowledge_for_ever(self) -> None:
        """Tell the broker what is done, several deliveries at a time."""
        while True:
            await self._owing.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ACK_DELAY_S):
                    await self._owing_many.wait()
            await self._acknowledge(CALL_TIMEOUT_S)

    async def consume_also(self, queues: Sequence[Queue], prefetch: Prefetch) -> None:
        """Consume these as well, from now on."""
        async with self._changing:
            for queue in queues:
                self._queues[_binding(queue)] = queue
                self._consume[queue.name] = prefetch
            connection = self._connection
            if connection is None:
                return
            try:
                with only_own_cancellation():
                    async with asyncio.timeout(SETUP_TIMEOUT_S):
                        await self._add_consumers(connection, queues)
            except QueueRefused as refusal:
                await self._forget([queue.name for queue in queues])
                raise CannotConsume(str(refusal)) from refusal
            except (*LOST, LinkDown) as error:
                self._end(f"a queue could not be consumed ({text_of(error)})")

    async def stop_consuming(self, queues: Sequence[str] | None) -> None:
        """Take no further deliveries of these, or of all and for good."""
        if queues is None:
            self._stopped = True
        async with self._changing:
            if queues is not None:
                await self._forget(queues)
                return
            for each in self._consumers.values():
                await _stop(each)

    async def restore(self, since_s: float) -> bool:
        """See that every queue is there and bound; whether they were."""
        async with self._inspector.alone:
            connection = self._connection
            if connection is None:
                return False
            if self._restored_s > since_s:
                return True
            began_s = time.monotonic()
            try:
                with only_own_cancellation():
                    async with asyncio.timeout(CALL_TIMEOUT_S):
                        await self._bind_again(connection)
            except (*LOST, LinkDown) as error:
                self._end(f"a queue was deleted ({text_of(error)})")
                return False
            self._restored_s = began_s
            return True

    async def look(self, queue: str) -> QueueLook:
        """How a queue stands at the broker now."""
        return await self._inspector.look(self.connection(), queue)

    def oldest_unacknowledged_s(self, now_s: float) -> float:
        """How long the oldest delivery that is not done has been here."""
        oldest = [each.oldest_s for each in self._consumers.values()]
        return max((now_s - at_s for at_s in oldest if at_s is not None), default=0.0)

    async def _set_up(self, connection: aio_pika.Connection) -> None:
        channel = await self._inspector.renew(connection)
        refused: set[str] = set()
        for queue in tuple(self._queues.values()):
            try:
                await declare(self._cluster, channel, queue)
            except QueueRefused as refusal:
                if queue.name in self._first_queues:
                    raise
                # One that was added must not keep the others away.
                log.error("queue_not_consumed", queue=queue.name, error=str(refusal))
                refused.add(queue.name)
                channel = await self._inspector.renew(connection)
        self._round_trip_s = await round_trip_s(channel)
        self._connection = connection
        for name in self._consume.keys() - refused:
            await self._start_consumer(connection, name)

    async def _while_consuming(
        self, connection: aio_pika.Connection, ended: asyncio.Future[None]
    ) -> None:
        """Hold the connection; queues may come, as channels, while it lasts."""
        while True:
            grown: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._grown = grown
            channels = [each.channel for each in self._consumers.values()]
            await self._cluster.until_ended(connection, channels, ended, until=grown)

    async def _add_consumers(
        self, connection: aio_pika.Connection, queues: Sequence[Queue]
    ) -> None:
        # A refusal closes the channel, and must not take the link with it.
        channel = await open_channel(connection)
        for queue in queues:
            await declare(self._cluster, channel, queue)
        await channel.close()
        for queue in queues:
            await self._start_consumer(connection, queue.name)
        if self._grown is not None and not self._grown.done():
            self._grown.set_result(None)

    async def _start_consumer(
        self, connection: aio_pika.Connection, queue: str
    ) -> None:
        wanted = self._consume[queue]
        prefetch = wanted if isinstance(wanted, int) else wanted(self._round_trip_s)
        consumer = self._consumers.get(queue)
        if self._stopped or (consumer is not None and consumer.prefetch == prefetch):
            return
        if consumer is None:
            channel = await open_channel(connection)
            channel.on_consumer_cancel_callbacks.add(
                partial(self._on_cancelled, queue, self._ended)
            )
            consumer = self._consumers[queue] = Consumer(queue, channel)
        else:
            # RabbitMQ applies a prefetch to consumers that start after it was set.
            await consumer.stop()
        try:
            await consumer.start(prefetch, partial(self._receive, consumer))
        except (ChannelNotFoundEntity, ChannelAccessRefused) as error:
            del self._consumers[queue]
            raise QueueRefused(
                f"cannot consume queue {queue!r} at {self._cluster.where} "
                f"({text_of(error)}): declare it or give user {self._cluster.user!r} "
                "permission to read it"
            ) from error

    async def _forget(self, queues: Sequence[str]) -> None:
        for binding in [each for each in self._queues if each[0] in queues]:
            del self._queues[binding]
        for name in queues:
            self._consume.pop(name, None)
            if name in self._consumers:
                # It stays, for what it has brought and for the next start.
                await _stop(self._consumers[name])

    async def _bind_again(self, connection: aio_pika.Connection) -> None:
        channel = await self._inspector.channel(connection)
        for queue in tuple(self._queues.values()):
            await channel.queue_declare(queue.name, passive=True)
            await channel.queue_bind(queue.name, queue.exchange, queue.routing_key)

    async def _receive(self, consumer: Consumer, message: DeliveredMessage) -> None:
        delivery = Delivery(consumer, message, self._note_ack)
        try:
            await self._on_delivery(delivery)  # type: ignore[misc] # set when consuming
        except LinkDown as error:
            # Its channel went too, or it stays unacknowledged: it comes again.
            log.info("a delivery was dropped", queue=consumer.queue, error=str(error))
        except Exception:
            # All there is: it is somebody else's function, and aiormq runs this as a
            # task whose error nobody would read.
            log.exception(
                "a delivery was not handled",
                link=self._cluster.name,
                queue=consumer.queue,
            )

    def _note_ack(self, consumer: Consumer) -> None:
        self._owing.set()
        if consumer.owes_many:
            self._owing_many.set()

    async def _acknowledge(self, timeout_s: float, *, written: bool = False) -> None:
        """Tell the broker of all that was finished since the last time."""
        self._owing.clear()
        self._owing_many.clear()
        # A connection that is dead and does not know it may take frames for ever.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                for each in tuple(self._consumers.values()):
                    with contextlib.suppress(*LOST, LinkDown), only_own_cancellation():
                        await each.acknowledge(written=written)

    def _on_cancelled(
        self, queue: str, ended: asyncio.Future[None] | None, _: object
    ) -> None:
        if ended is self._ended:
            self._end(f"queue {queue!r} was deleted or lost its leader")

    def _end(self, why: str) -> None:
        ended = self._ended
        if ended is not None and not ended.done():
            ended.set_exception(
                LinkDown(f"{why} at {self._cluster.where}: it will be declared again")
            )


async def _stop(consumer: Consumer) -> None:
    with contextlib.suppress(*LOST, LinkDown), only_own_cancellation():
        await consumer.stop()


def _binding(queue: Queue) -> tuple[str, str, str]:
    return (queue.name, queue.exchange, queue.routing_key)


def _read(ended: asyncio.Future[None]) -> None:
    if not ended.cancelled():
        ended.exception()
