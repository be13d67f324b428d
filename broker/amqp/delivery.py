"""A message that a queue has brought, settled once and on the channel it came by."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from aiormq.abc import DeliveredMessage

from broker.amqp.connection import LOST
from broker.amqp.consumer import Consumer


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
        consumer: Consumer,
        message: DeliveredMessage,
        on_ack: Callable[[Consumer], None],
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
            with contextlib.suppress(*LOST):
                await self._consumer.reject(self._tag, requeue=requeue)

    def _settle(self) -> bool:
        if not self.live:
            return False
        self._settled = True
        return True
