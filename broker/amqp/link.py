"""An AMQP link: two connections, one that consumes and one that publishes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from broker.amqp.browser import Browser, browse
from broker.amqp.connection import LOST, Cluster, set_up_libraries, text_of
from broker.amqp.delivery import Delivery
from broker.amqp.publisher import Publisher
from broker.amqp.queues import QueueLook
from broker.amqp.subscriber import Prefetch, Subscriber
from broker.backoff import Backoff
from broker.link import LinkDown, Standing, until_cancelled
from broker.topology import TOPIC_EXCHANGE, Queue


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
        self._cluster = Cluster(url, name=name, heartbeat_s=heartbeat_s)
        self._on_change = on_change
        self._was_up = False
        self._inward = Standing(f"{name}: consuming", self._changed, backoff)
        self._outward = Standing(f"{name}: publishing", self._changed, backoff)
        self._subscriber = Subscriber(
            self._cluster,
            self._inward,
            queues=queues,
            consume=consume or {},
            on_delivery=on_delivery,
        )
        self._publisher = Publisher(self._cluster, self._outward)

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
        set_up_libraries()
        async with asyncio.TaskGroup() as sides:
            for side in (
                _endure(self._inward, self._subscriber.run_once),
                _endure(self._outward, self._publisher.run_once),
                self._subscriber.acknowledge_for_ever(),
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
        await self._publisher.publish(
            routing_key, body, exchange=exchange, headers=headers, timeout_s=timeout_s
        )

    async def consume_also(self, queues: Sequence[Queue], prefetch: Prefetch) -> None:
        """Declare these queues and consume them from now on, after reconnects as well.

        Without a connection this takes effect with the next one, where a queue that is
        refused is logged and tried again with the one after. A queue that is consumed
        already goes on with the new prefetch.

        Raises:
            CannotConsume: the broker refused one of them; none of them is consumed.
        """
        await self._subscriber.consume_also(queues, prefetch)

    async def stop_consuming(self, queues: Sequence[str] | None = None) -> None:
        """Take no further deliveries; those taken can still be settled.

        Args:
            queues: of these alone, until they are consumed again; None: of all, for
                good.
        """
        await self._subscriber.stop_consuming(queues)

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
        return await self._subscriber.restore(since_s)

    def oldest_unacknowledged_s(self, now_s: float) -> float:
        """How long the oldest delivery that is not done has been here, in seconds.

        Args:
            now_s: of `time.monotonic`.
        """
        return self._subscriber.oldest_unacknowledged_s(now_s)

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
        return await self._subscriber.look(queue)

    def browse(self, queue: str) -> AbstractAsyncContextManager[Browser]:
        """Look at a queue's messages one after the other, and at each once.

        What was not removed goes back to where it was at the end of this, and when
        the connection or this process dies. Nobody else can browse it meanwhile.

        Raises:
            QueueInUse: somebody else does.
            NoSuchQueue: the broker does not have it.
            LinkDown: there is no connection.
        """
        return browse(self._subscriber.connection(), self._cluster.where, queue)

    def _changed(self, _: bool) -> None:
        if self.up == self._was_up:
            return
        self._was_up = self.up
        if self._on_change is not None:
            self._on_change(self._was_up)


async def _endure(standing: Standing, once: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await once()
        except LinkDown as error:
            reason = str(error)
        except LOST as error:
            reason = f"the broker ended a call: {text_of(error)}"
        else:
            reason = "the connection ended"
        await standing.pause(reason)
