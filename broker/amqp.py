"""AMQP connections that endure: one consumes, one publishes. The only user of aio-pika.

A delivery is acknowledged by hand and only on the channel that brought it; a publish
is persistent, confirmed and timed. Deliveries are consumed at the level of aiormq,
below aio-pika's message objects, which cost half of a worker's time for each message.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import aio_pika
import aiormq
import structlog
from aiormq.abc import AbstractChannel as Channel
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import (
    AMQPError,
    AuthenticationError,
    ChannelAccessRefused,
    ChannelLockedResource,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
    DeliveryError,
    ProbableAuthenticationError,
)
from pamqp.commands import Basic
from yarl import URL

from broker.acks import Acks
from broker.backoff import Backoff
from broker.link import (
    BadUrl,
    LinkDown,
    PublishTimeout,
    Standing,
    each_address,
    until_cancelled,
    why_unreachable,
    without_password,
)
from broker.topology import TOPIC_EXCHANGE, Queue

__all__ = [
    "AmqpLink",
    "BadUrl",
    "Browser",
    "CannotConsume",
    "Delivery",
    "LinkDown",
    "NoSuchQueue",
    "Prefetch",
    "PublishTimeout",
    "QueueInUse",
    "QueueLook",
]

log = structlog.get_logger(__name__)

Prefetch = int | Callable[[float], int]
"""Deliveries to hold unacknowledged, or how many for a round trip of some seconds."""

CONNECT_TIMEOUT_S: Final = 10.0
SETUP_TIMEOUT_S: Final = 60.0
CALL_TIMEOUT_S: Final = 10.0
CLOSE_TIMEOUT_S: Final = 2.0
# How long an acknowledgement may wait for others to travel with, and the share of
# the prefetch that may, so that waiting never keeps the next delivery back.
ACK_DELAY_S: Final = 0.01
ACK_SHARE: Final = 4
PERSISTENT: Final = 2
# Of three, as aiormq has it, the last comes too late for a link that is to be back
# within 15 s, as MQTT's is.
HEARTBEATS_MISSED: Final = 2

# What aio-pika lets through when a connection is gone or a call is refused; an
# invalid channel state is a RuntimeError.
_LOST: Final = (AMQPError, OSError, EOFError, RuntimeError)


class NoSuchQueue(LookupError):
    """The broker has no queue of that name."""


@dataclass(frozen=True, slots=True)
class QueueLook:
    """A queue at one moment: messages ready to be delivered, and who consumes it."""

    ready: int
    consumers: int


class CannotConsume(Exception):
    """The broker refuses a queue, or to deliver from it; says why and what to do."""


class _Refused(LinkDown):
    """The same, while the link is set up: without its queues it is of no use."""


class QueueInUse(Exception):
    """Somebody else looks at the queue."""


class _Consumer:
    """One queue being consumed on a channel of its own."""

    def __init__(self, queue: str, channel: Channel) -> None:
        self.queue = queue
        self.channel = channel
        self.prefetch = 0
        self._tag = ""
        self._acks = Acks()
        self._most_owed = 1
        self._arrivals: deque[tuple[int, float]] = deque()

    @property
    def alive(self) -> bool:
        """Whether deliveries of it can still be settled."""
        return not self.channel.is_closed

    @property
    def owes_many(self) -> bool:
        """Whether acknowledgements should not wait for more company."""
        return self._acks.owed >= self._most_owed

    def arrived(self, tag: int, at_s: float) -> None:
        """A delivery is ours until it is settled."""
        self._arrivals.append((tag, at_s))

    @property
    def oldest_s(self) -> float | None:
        """When the oldest delivery arrived that is not done; None if all are."""
        self._forget_done()
        return self._arrivals[0][1] if self._arrivals else None

    async def start(
        self,
        prefetch: int,
        receive: Callable[[DeliveredMessage], Coroutine[Any, Any, None]],
    ) -> None:
        """Have deliveries brought; one may come before this returns."""
        await self.channel.basic_qos(prefetch_count=prefetch)
        self.prefetch = prefetch
        self._most_owed = max(1, prefetch // ACK_SHARE)
        ok = await self.channel.basic_consume(self.queue, receive)
        self._tag = str(ok.consumer_tag)

    async def stop(self) -> None:
        """Have none brought; those that were can still be settled."""
        tag, self._tag, self.prefetch = self._tag, "", 0
        if tag:
            await self.channel.basic_cancel(tag, timeout=CALL_TIMEOUT_S)

    def finish(self, tag: int) -> None:
        """Owe the broker an acknowledgement."""
        self._acks.finish(tag)

    async def reject(self, tag: int, *, requeue: bool) -> None:
        """Give a delivery back."""
        await self.channel.basic_reject(tag, requeue=requeue, wait=False)
        # Only now: an acknowledgement of later ones would cover it too.
        self._acks.settled(tag)
        self._forget_done()

    async def acknowledge(self, *, written: bool) -> None:
        """Tell the broker all that is owed; with `written`, return once it is sent."""
        due = self._acks.take()
        self._forget_done()
        if due.up_to:
            await self.channel.basic_ack(due.up_to, multiple=True, wait=written)
        for tag in due.alone:
            await self.channel.basic_ack(tag, wait=written)

    def _forget_done(self) -> None:
        while self._arrivals and self._arrivals[0][0] <= self._acks.floor:
            self._arrivals.popleft()


class Delivery:
    """One message from a queue, to be acknowledged or rejected once.

    Attributes:
        queue: the queue it came from.
        routing_key: as published; names the sender, which the broker enforced.
        body: the payload.
        headers: the message's headers.
        redelivered: whether it was delivered before.
        received_at: when it arrived, in seconds of `time.monotonic`.
    """

    __slots__ = (
        "_consumer",
        "_on_ack",
        "_settled",
        "_tag",
        "body",
        "headers",
        "queue",
        "received_at",
        "redelivered",
        "routing_key",
    )

    def __init__(
        self,
        consumer: _Consumer,
        message: DeliveredMessage,
        on_ack: Callable[[_Consumer], None],
    ) -> None:
        self.queue = consumer.queue
        self.routing_key = message.routing_key or ""
        self.body = message.body
        self.headers: Mapping[str, Any] = message.header.properties.headers or {}
        self.redelivered = bool(message.redelivered)
        self.received_at = time.monotonic()
        self._consumer = consumer
        self._on_ack = on_ack
        self._tag = message.delivery_tag or 0
        self._settled = False
        consumer.arrived(self._tag, self.received_at)

    @property
    def live(self) -> bool:
        """Whether it can still be settled: not yet, and its channel is open."""
        return not self._settled and self._consumer.alive

    def ack(self) -> None:
        """Have the broker forget it, together with others and within milliseconds.

        Does nothing when it was settled before or its channel is gone: the broker
        has then queued it again, and a tag means nothing on another channel.
        """
        if self._settle():
            self._consumer.finish(self._tag)
            self._on_ack(self._consumer)

    async def reject(self, requeue: bool) -> None:
        """Give it back, to be delivered again (`requeue`) or dead-lettered.

        Does nothing when it was settled before or its channel is gone.
        """
        if self._settle():
            with contextlib.suppress(*_LOST):
                await self._consumer.reject(self._tag, requeue=requeue)

    def _settle(self) -> bool:
        if not self.live:
            return False
        self._settled = True
        return True


class Browser:
    """A look at the messages of one queue, in their order; see `AmqpLink.browse`.

    Attributes:
        count: how many messages there were when it began.
    """

    def __init__(self, queue: str, channel: Channel, count: int) -> None:
        self.count = count
        self._channel = channel
        self._consumer = _Consumer(queue, channel)

    async def next(self) -> Delivery | None:
        """The next message, or None when there is no other.

        Raises:
            LinkDown: the connection was lost; what was not removed is in the queue.
        """
        with _translated():
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
        with _translated():
            async with asyncio.timeout(CALL_TIMEOUT_S):
                await self._consumer.acknowledge(written=True)


class AmqpLink:
    """Two connections that consume and publish, and come back by themselves.

    Args:
        url: `amqp://user:password@host:5672/vhost` (`%2F` is the vhost `/`), or
            `amqps://…?cafile=/path.pem`. The members of a cluster are named with
            commas between, `amqp://…@a:5672,b:5672/vhost`, and tried in turn.
        name: shown at the broker beside the connections.
        queues: declared and bound on each connect, before anything is consumed.
        consume: prefetch for each queue to consume; each has a channel of its own.
            `consume_also` and `stop_consuming` change it later. A function is asked
            at each connect, with the round trip to the broker in seconds.
        on_delivery: takes one delivery over, and is cancelled when the channel dies:
            it should hand over and return. What it raises is logged, and the delivery
            stays unacknowledged until its connection ends.
        on_change: called with True when both connections work, and with False when
            either is lost.
        heartbeat_s: seconds. The broker gives a silent client up after two to three
            times as many, the client a silent broker by then too: within 12 s.
        backoff: waits between tries.

    Raises:
        BadUrl: `url` does not name an AMQP broker.
    """

    def __init__(  # noqa: PLR0913 - the contract of a link; all but two by name
        self,
        url: str,
        *,
        name: str,
        queues: Sequence[Queue] = (),
        consume: Mapping[str, Prefetch] | None = None,
        on_delivery: Callable[[Delivery], Awaitable[None]] | None = None,
        on_change: Callable[[bool], None] | None = None,
        heartbeat_s: int = 4,
        backoff: Backoff | None = None,
    ) -> None:
        self._urls = tuple(
            _read_url(each).update_query(heartbeat=heartbeat_s)
            for each in each_address(url)
        )
        self._turn = 0
        self._name = name
        # One queue may be bound more than once.
        self._queues = {_binding(queue): queue for queue in queues}
        self._first_queues = {queue.name for queue in queues}
        self._consume: dict[str, Prefetch] = dict(consume or {})
        self._round_trip_s = 0.0
        if self._consume and on_delivery is None:
            raise ValueError("a link that consumes needs on_delivery")
        self._on_delivery = on_delivery
        self._on_change = on_change
        self._inward = Standing(f"{name}: consuming", self._changed, backoff)
        self._outward = Standing(f"{name}: publishing", self._changed, backoff)
        self._was_up = False
        self._inlet: aio_pika.Connection | None = None
        self._outlet: Channel | None = None
        self._inspector: Channel | None = None
        self._inspecting = asyncio.Lock()
        self._restored_s = -math.inf
        self._ended: asyncio.Future[None] | None = None
        self._grown: asyncio.Future[None] | None = None
        self._consumers: dict[str, _Consumer] = {}
        self._changing = asyncio.Lock()
        self._owing = asyncio.Event()
        self._owing_many = asyncio.Event()
        self._stopped = False

    @property
    def _url(self) -> URL:
        return self._urls[self._turn % len(self._urls)]

    @property
    def _where(self) -> str:
        return f"{self._url.scheme}://{self._url.host}:{self._url.port}"

    @property
    def up(self) -> bool:
        """Whether both connections work, all queues are declared and consumed."""
        return self._inward.up and self._outward.up

    @property
    def last_error(self) -> str | None:
        """What keeps the link down, and what to do; None while it is up."""
        return self._inward.last_error or self._outward.last_error

    async def wait_up(self) -> None:
        """Return once both connections work."""
        while not self.up:
            await self._inward.wait_up()
            await self._outward.wait_up()

    async def run(self) -> None:
        """Connect and stay connected; only cancellation ends it."""
        for library in ("aiormq", "aio_pika"):
            # They log each failure in their own words; ours say it once.
            logging.getLogger(library).setLevel(logging.CRITICAL)
        aiormq.Connection.HEARTBEAT_GRACE_MULTIPLIER = HEARTBEATS_MISSED
        async with asyncio.TaskGroup() as sides:
            for side in (
                _endure(self._inward, self._consume_once),
                _endure(self._outward, self._publish_once),
                self._acknowledge_for_ever(),
            ):
                sides.create_task(until_cancelled(side))

    async def publish(
        self,
        routing_key: str,
        body: bytes,
        *,
        exchange: str = TOPIC_EXCHANGE,
        headers: Mapping[str, Any] | None = None,
        timeout_s: float = 10.0,
    ) -> None:
        """Publish a persistent message and return when the broker has confirmed it.

        Raises:
            LinkDown: there is no connection, it was lost before the confirm, or the
                broker refused the message.
            PublishTimeout: no confirm within `timeout_s` seconds.
            ValueError: `routing_key` is over 255 bytes.
        """
        outlet = self._outlet
        if outlet is None:
            raise LinkDown(self._down())
        properties = Basic.Properties(
            delivery_mode=PERSISTENT, headers=dict(headers) if headers else None
        )
        try:
            with _only_own_cancellation():
                await outlet.basic_publish(
                    body,
                    exchange=exchange,
                    routing_key=routing_key,
                    properties=properties,
                    timeout=timeout_s,
                )
        except TimeoutError:
            raise PublishTimeout(
                f"{self._where} did not confirm a message within {timeout_s:g} s: it "
                "may be over its memory or disk limit; publish again later"
            ) from None
        except DeliveryError as error:
            raise LinkDown(
                f"{self._where} refused a message for {routing_key!r}: a queue that "
                "takes it is full or has no leader; publish again later"
            ) from error
        except _LOST as error:
            raise LinkDown(self._down() + f" ({_text(error)})") from error

    async def consume_also(self, queues: Sequence[Queue], prefetch: Prefetch) -> None:
        """Declare these queues and consume them from now on, after reconnects as well.

        Without a connection this takes effect with the next one, where a queue that is
        refused is logged and tried again with the one after. A queue that is consumed
        already goes on with the new prefetch.

        Raises:
            CannotConsume: the broker refused one of them; none of them is consumed.
        """
        async with self._changing:
            for queue in queues:
                self._queues[_binding(queue)] = queue
                self._consume[queue.name] = prefetch
            connection = self._inlet
            if connection is None:
                return
            try:
                with _only_own_cancellation():
                    async with asyncio.timeout(SETUP_TIMEOUT_S):
                        await self._add_consumers(connection, queues)
            except _Refused as refusal:
                await self._forget([queue.name for queue in queues])
                raise CannotConsume(str(refusal)) from refusal
            except (*_LOST, LinkDown) as error:
                self._end_inward(f"a queue could not be consumed ({_text(error)})")

    async def stop_consuming(self, queues: Sequence[str] | None = None) -> None:
        """Take no further deliveries; those taken can still be settled.

        Args:
            queues: of these alone, until they are consumed again; None: of all, for
                good.
        """
        if queues is None:
            self._stopped = True
        async with self._changing:
            if queues is not None:
                await self._forget(queues)
                return
            for each in self._consumers.values():
                await _stop(each)

    async def _add_consumers(
        self, connection: aio_pika.Connection, queues: Sequence[Queue]
    ) -> None:
        # A refusal closes the channel, and must not take the link with it.
        channel = await _open_channel(connection)
        for queue in queues:
            await self._declare(channel, queue)
        await channel.close()
        for queue in queues:
            await self._start_consumer(connection, queue.name)
        if self._grown is not None and not self._grown.done():
            self._grown.set_result(None)

    async def _forget(self, queues: Sequence[str]) -> None:
        for binding in [each for each in self._queues if each[0] in queues]:
            del self._queues[binding]
        for name in queues:
            self._consume.pop(name, None)
            if name in self._consumers:
                # It stays, for what it has brought and for the next start.
                await _stop(self._consumers[name])

    async def restore(self, since_s: float) -> bool:
        """See that every queue is there and bound: somebody may have deleted one.

        A binding is made again at once. For a queue the link connects anew, because
        RabbitMQ 3.10 never delivers from a queue that was deleted and declared again
        before its old consumers had been cancelled.

        Args:
            since_s: of `time.monotonic`; nothing is done when this was done after it.

        Returns:
            Whether all is there. If not, the link connects anew, and what was not
            acknowledged is delivered again.
        """
        async with self._inspecting:
            connection = self._inlet
            if connection is None:
                return False
            if self._restored_s > since_s:
                return True
            began_s = time.monotonic()
            try:
                with _only_own_cancellation():
                    async with asyncio.timeout(CALL_TIMEOUT_S):
                        await self._bind_again(connection)
            except (*_LOST, LinkDown) as error:
                self._end_inward(f"a queue was deleted ({_text(error)})")
                return False
            self._restored_s = began_s
            return True

    async def _bind_again(self, connection: aio_pika.Connection) -> None:
        channel = await self._inspecting_channel(connection)
        for queue in tuple(self._queues.values()):
            await channel.queue_declare(queue.name, passive=True)
            await channel.queue_bind(queue.name, queue.exchange, queue.routing_key)

    def _end_inward(self, why: str) -> None:
        ended = self._ended
        if ended is not None and not ended.done():
            ended.set_exception(
                LinkDown(f"{why} at {self._where}: it will be declared again")
            )

    async def _inspecting_channel(self, connection: aio_pika.Connection) -> Channel:
        if self._inspector is None or self._inspector.is_closed:
            self._inspector = await _open_channel(connection)
        return self._inspector

    def oldest_unacknowledged_s(self, now_s: float) -> float:
        """How long the oldest delivery that is not done has been here, in seconds.

        Args:
            now_s: of `time.monotonic`.
        """
        oldest = [each.oldest_s for each in self._consumers.values()]
        return max((now_s - at_s for at_s in oldest if at_s is not None), default=0.0)

    async def depth(self, queue: str) -> int:
        """How many messages of `queue` are ready to be delivered.

        Raises:
            NoSuchQueue: the broker does not have it.
            LinkDown: there is no connection.
        """
        return (await self.look(queue)).ready

    async def look(self, queue: str) -> QueueLook:
        """How a queue stands at the broker now.

        Raises:
            NoSuchQueue: the broker does not have it.
            LinkDown: there is no connection.
        """
        connection = self._inlet
        if connection is None:
            raise LinkDown(self._down())
        try:
            async with self._inspecting, asyncio.timeout(CALL_TIMEOUT_S):
                with _only_own_cancellation():
                    channel = await self._inspecting_channel(connection)
                    found = await channel.queue_declare(queue, passive=True)
        except ChannelNotFoundEntity:
            raise NoSuchQueue(f"{self._where} has no queue {queue!r}") from None
        except _LOST as error:
            raise LinkDown(self._down() + f" ({_text(error)})") from error
        return QueueLook(found.message_count or 0, found.consumer_count or 0)

    @contextlib.asynccontextmanager
    async def browse(self, queue: str) -> AsyncIterator[Browser]:
        """Look at a queue's messages one after the other, and at each once.

        What was not removed goes back to where it was at the end of this, and when
        the connection or this process dies. Nobody else can browse it meanwhile.

        Raises:
            QueueInUse: somebody else does.
            NoSuchQueue: the broker does not have it.
            LinkDown: there is no connection.
        """
        connection = self._inlet
        if connection is None:
            raise LinkDown(self._down())
        lock = f"{queue}.browsed"
        with _translated():
            async with asyncio.timeout(CALL_TIMEOUT_S):
                door = await _open_channel(connection)
                try:
                    # Gone with the connection that made it, whatever ends that.
                    await door.queue_declare(lock, exclusive=True)
                    found = await door.queue_declare(queue, passive=True)
                except ChannelLockedResource:
                    raise QueueInUse(f"queue {queue!r} is in use") from None
                except ChannelNotFoundEntity:
                    raise NoSuchQueue(f"{self._where} has no queue {queue!r}") from None
                channel = await _open_channel(connection)
        try:
            yield Browser(queue, channel, found.message_count or 0)
        finally:
            with contextlib.suppress(*_LOST, LinkDown), _only_own_cancellation():
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await channel.close()
                    await door.queue_delete(lock)
                    await door.close()

    def _down(self) -> str:
        why = self.last_error or "the connection was lost or not made yet"
        return f"no link to {self._where}: {why}"

    def _changed(self, _: bool) -> None:
        if self.up == self._was_up:
            return
        self._was_up = self.up
        if self._on_change is not None:
            self._on_change(self._was_up)

    @contextlib.asynccontextmanager
    async def _connected(self, purpose: str) -> AsyncIterator[aio_pika.Connection]:
        turn = self._turn
        connection = aio_pika.Connection(
            self._url.update_query(name=f"{self._name}: {purpose}")
        )
        try:
            try:
                with _only_own_cancellation():
                    # aio-pika's own timeout leaves out the wait of a blocked broker.
                    async with asyncio.timeout(CONNECT_TIMEOUT_S):
                        await connection.connect()
            except _LOST as error:
                raise LinkDown(self._why_unconnected(error)) from error
            yield connection
        finally:
            with contextlib.suppress(*_LOST, LinkDown), _only_own_cancellation():
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await connection.close()
            if turn == self._turn:  # else the other connection has moved on already
                self._turn += 1

    async def _publish_once(self) -> None:
        async with self._connected("publish") as connection:
            with _only_own_cancellation():
                async with asyncio.timeout(SETUP_TIMEOUT_S):
                    outlet = await _open_channel(connection, confirms=True)
            self._outlet = outlet
            self._outward.rise()
            try:
                await self._until_ended(connection, [outlet])
            finally:
                self._outlet = None
                self._outward.fall()

    async def _consume_once(self) -> None:
        async with self._connected("consume") as connection:
            ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            ended.add_done_callback(_read)  # it may end before anybody waits for it
            self._ended = ended
            try:
                async with self._changing:
                    with _only_own_cancellation():
                        async with asyncio.timeout(SETUP_TIMEOUT_S):
                            await self._set_up(connection)
                self._inward.rise()
                await self._while_consuming(connection, ended)
            finally:
                # Closing throws away what was not yet written.
                await self._acknowledge(CLOSE_TIMEOUT_S, written=True)
                self._inlet = self._inspector = None
                self._consumers = {}
                self._inward.fall()

    async def _set_up(self, connection: aio_pika.Connection) -> None:
        self._inspector = await _open_channel(connection)
        refused: set[str] = set()
        for queue in tuple(self._queues.values()):
            try:
                await self._declare(self._inspector, queue)
            except _Refused as refusal:
                if queue.name in self._first_queues:
                    raise
                # One that was added must not keep the others away.
                log.error("queue_not_consumed", queue=queue.name, error=str(refusal))
                refused.add(queue.name)
                self._inspector = await _open_channel(connection)
        self._round_trip_s = await _round_trip_s(self._inspector)
        self._inlet = connection
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
            await self._until_ended(connection, channels, ended, until=grown)

    async def _declare(self, channel: Channel, queue: Queue) -> None:
        try:
            await channel.queue_declare(
                queue.name,
                durable=not queue.exclusive,
                exclusive=queue.exclusive,
                arguments=dict(queue.arguments),
            )
            await channel.queue_bind(queue.name, queue.exchange, queue.routing_key)
        except ChannelPreconditionFailed as error:
            raise _Refused(
                f"queue {queue.name!r} exists at {self._where} with other arguments "
                f"({_text(error)}): empty and delete it, then it is declared anew"
            ) from error
        except ChannelAccessRefused as error:
            raise _Refused(
                f"user {self._url.user!r} may not declare queue {queue.name!r} at "
                f"{self._where} ({_text(error)}): load the rendered definitions"
            ) from error
        except ChannelNotFoundEntity as error:
            raise _Refused(
                f"{self._where} lacks the exchange {queue.exchange!r} of queue "
                f"{queue.name!r}: load the rendered definitions"
            ) from error

    async def _start_consumer(
        self, connection: aio_pika.Connection, queue: str
    ) -> None:
        wanted = self._consume[queue]
        prefetch = wanted if isinstance(wanted, int) else wanted(self._round_trip_s)
        consumer = self._consumers.get(queue)
        if self._stopped or (consumer is not None and consumer.prefetch == prefetch):
            return
        if consumer is None:
            channel = await _open_channel(connection)
            channel.on_consumer_cancel_callbacks.add(
                partial(self._on_cancelled, queue, self._ended)
            )
            consumer = self._consumers[queue] = _Consumer(queue, channel)
        else:
            # RabbitMQ applies a prefetch to consumers that start after it was set.
            await consumer.stop()
        try:
            await consumer.start(prefetch, partial(self._receive, consumer))
        except (ChannelNotFoundEntity, ChannelAccessRefused) as error:
            del self._consumers[queue]
            raise _Refused(
                f"cannot consume queue {queue!r} at {self._where} "
                f"({_text(error)}): declare it or give user {self._url.user!r} "
                "permission to read it"
            ) from error

    async def _receive(self, consumer: _Consumer, message: DeliveredMessage) -> None:
        delivery = Delivery(consumer, message, self._note_ack)
        try:
            await self._on_delivery(delivery)  # type: ignore[misc] # set when consuming
        except LinkDown as error:
            # Its channel went too, or it stays unacknowledged: it comes again.
            log.info("a delivery was dropped", queue=consumer.queue, error=str(error))
        except Exception:
            log.exception(
                "a delivery was not handled", link=self._name, queue=consumer.queue
            )

    def _note_ack(self, consumer: _Consumer) -> None:
        self._owing.set()
        if consumer.owes_many:
            self._owing_many.set()

    async def _acknowledge_for_ever(self) -> None:
        while True:
            await self._owing.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ACK_DELAY_S):
                    await self._owing_many.wait()
            await self._acknowledge(CALL_TIMEOUT_S)

    async def _acknowledge(self, timeout_s: float, *, written: bool = False) -> None:
        """Tell the broker of all that was finished since the last time."""
        self._owing.clear()
        self._owing_many.clear()
        # A connection that is dead and does not know it may take frames for ever.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                for each in tuple(self._consumers.values()):
                    with (
                        contextlib.suppress(*_LOST, LinkDown),
                        _only_own_cancellation(),
                    ):
                        await each.acknowledge(written=written)

    def _on_cancelled(
        self, queue: str, ended: asyncio.Future[None] | None, _: object
    ) -> None:
        if ended is self._ended:
            self._end_inward(f"queue {queue!r} was deleted or lost its leader")

    async def _until_ended(
        self,
        connection: aio_pika.Connection,
        channels: Sequence[Channel],
        ended: asyncio.Future[None] | None = None,
        *,
        until: asyncio.Future[None] | None = None,
    ) -> None:
        """Hold the connection; returns when `until` is done.

        Raises:
            LinkDown: the connection or a channel has ended, or `ended` was set.
        """
        transport = connection.transport
        if transport is None:
            raise LinkDown(f"{self._where} closed the connection")
        ends = [transport.connection.closing, *(each.closing for each in channels)]
        others = [each for each in (ended, until) if each is not None]
        try:
            done, _ = await asyncio.wait(
                [*others, *ends], return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for end in ends:
                end.cancel()
        if done != {until}:
            raise LinkDown(self._why_ended(done))

    def _why_ended(self, done: set[asyncio.Future[Any]]) -> str:
        errors = [end.exception() for end in done if not end.cancelled()]
        for error in errors:
            if isinstance(error, LinkDown):
                return str(error)
        known = dict.fromkeys(_text(error) for error in errors if error is not None)
        return (
            f"{self._where} closed the connection ({'; '.join(known) or 'no reason'})"
        )

    def _why_unconnected(self, error: BaseException) -> str:
        if isinstance(error, (AuthenticationError, ProbableAuthenticationError)):
            return (
                f"{self._where} refused user {self._url.user!r}: check the user and "
                "password in the URL, and that the broker knows the user"
            )
        # aiormq keeps only the text of a socket's error, so look behind its own.
        cause = error.__cause__ or error.__context__
        if isinstance(error, AMQPError) and not isinstance(cause, OSError):
            return (
                f"{self._where} refused the connection ({_text(error)}): check the "
                f"vhost {self._url.path!r} and the permissions of {self._url.user!r}"
            )
        return why_unreachable(self._where, cause or error)


async def _endure(standing: Standing, once: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await once()
        except LinkDown as error:
            reason = str(error)
        except _LOST as error:
            reason = f"the broker ended a call: {_text(error)}"
        else:
            reason = "the connection ended"
        await standing.pause(reason)


def _read(ended: asyncio.Future[None]) -> None:
    if not ended.cancelled():
        ended.exception()


async def _stop(consumer: _Consumer) -> None:
    with contextlib.suppress(*_LOST, LinkDown), _only_own_cancellation():
        await consumer.stop()


def _binding(queue: Queue) -> tuple[str, str, str]:
    return (queue.name, queue.exchange, queue.routing_key)


async def _open_channel(
    connection: aio_pika.Connection, *, confirms: bool = False
) -> Channel:
    channel = connection.channel(publisher_confirms=confirms)
    await channel.initialize()
    return await channel.get_underlay_channel()


async def _round_trip_s(channel: Channel) -> float:
    """The quickest of a few calls that cost the broker nothing."""
    took_s = []
    for _ in range(3):
        began_s = time.monotonic()
        await channel.basic_qos(prefetch_count=1)
        took_s.append(time.monotonic() - began_s)
    return min(took_s)


@contextlib.contextmanager
def _only_own_cancellation() -> Iterator[None]:
    """Let a cancellation through only when this task was cancelled.

    aiormq answers calls that wait on a closing channel with a CancelledError, which
    would end a task that nobody has cancelled.
    """
    try:
        yield
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise LinkDown("the connection was lost during a call") from None


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        with _only_own_cancellation():
            yield
    except TimeoutError:
        raise LinkDown("the broker did not answer in time") from None
    except _LOST as error:
        raise LinkDown(f"the connection was lost ({_text(error)})") from error


def _read_url(url: str) -> URL:
    try:
        read = URL(url)
    except ValueError as error:
        raise BadUrl(f"not the URL of an AMQP broker ({error})") from error
    if read.scheme not in {"amqp", "amqps"} or not read.host:
        raise BadUrl(
            f"{without_password(url)!r} does not name an AMQP broker; write "
            "amqp://user:password@host:5672/vhost, or amqps:// for TLS"
        )
    return (
        read if read.port else read.with_port(5671 if read.scheme == "amqps" else 5672)
    )


def _text(error: BaseException | None) -> str:
    """What the broker said, without AMQP's number for it."""
    parts = [str(part) for part in getattr(error, "args", ()) if isinstance(part, str)]
    return "; ".join(parts) or type(error).__name__
