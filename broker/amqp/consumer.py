"""One queue that is consumed, and what is owed to the broker for what it brought."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final

from aiormq.abc import AbstractChannel as Channel
from aiormq.abc import DeliveredMessage

from broker.amqp.acks import Acks
from broker.amqp.connection import CALL_TIMEOUT_S

# The share of the prefetch that may wait to be acknowledged together, so that waiting
# never keeps the next delivery back.
ACK_SHARE: Final = 4


class Consumer:
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


async def round_trip_s(channel: Channel) -> float:
    """How long the broker takes to answer: the quickest of a few calls, in seconds."""
    took_s = []
    for _ in range(3):
        began_s = time.monotonic()
        # The cheapest call there is: the broker only notes a number.
        await channel.basic_qos(prefetch_count=1)
        took_s.append(time.monotonic() - began_s)
    return min(took_s)
