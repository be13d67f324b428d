"""Publish results, and acknowledge a delivery when all of its results are confirmed.

Never the other way round: a crash in between repeats work and loses nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final, Protocol

import structlog

from broker.backoff import Backoff
from broker.link import LinkDown
from broker.topics import as_routing_key, results
from cloud_worker.core.ledger import Cause, Ledger
from cloud_worker.core.replies import Finished, Reply, group_replies
from cloud_worker.loops.observer import Observer
from cloud_worker.loops.parcels import Parcel
from cloud_worker.loops.stamps import Stamps
from lifecycle.clock import SystemClock
from lifecycle.journal import NOBODY, Event, Journal

log = structlog.get_logger(__name__)

MAX_IN_FLIGHT: Final = 64
# Who gets no answer loses nothing by so much. In an overload they come by the hundred,
# and a message for each would take the time in which others could be answered.
GATHER_S: Final = 0.005


class Publish(Protocol):
    """Publish on the topic exchange with confirmation, as `AmqpLink.publish` does."""

    async def __call__(
        self, routing_key: str, body: bytes, *, timeout_s: float
    ) -> None:
        """Publish.

        Raises:
            LinkDown: not confirmed.
        """
        ...


async def publish_while(
    wanted: Callable[[], bool],
    publish: Publish,
    routing_key: str,
    body: bytes,
    *,
    timeout_s: float,
) -> bool:
    """Publish until it is confirmed or no longer wanted; says whether it was."""
    backoff = Backoff(first_s=0.05, most_s=2.0)
    while wanted():
        try:
            await publish(routing_key, body, timeout_s=timeout_s)
        except LinkDown as error:
            log.debug("publish again", routing_key=routing_key, reason=str(error))
            await asyncio.sleep(backoff.next_s())
        else:
            return True
    return False


class Replies:
    """Results on their way out. Those that finish together for one agent travel together.

    Answers leave at once, and take along all else that is finished; that waits for them
    for a moment only. While many publishes are in flight, results gather and leave in
    fuller envelopes.

    Attributes:
        stamps: what each result says of the pool.
        observer: told of what is confirmed; those that use these replies tell it too.
    """

    def __init__(
        self,
        publish: Publish,
        stamps: Stamps,
        *,
        ledger: Ledger,
        timeout_s: float = 10.0,
        journal: Journal = NOBODY,
        observer: Observer | None = None,
    ) -> None:
        self.stamps = stamps
        self.observer = observer or Observer(SystemClock())
        self._publish = publish
        self._ledger = ledger
        self._timeout_s = timeout_s
        self._journal = journal
        self._finished: list[Finished[Parcel]] = []
        self._gathering: asyncio.TimerHandle | None = None
        self._sending: asyncio.TaskGroup | None = None
        self._in_flight = 0

    def finish(self, finished: Iterable[Finished[Parcel]]) -> None:
        """Take results over; those of one call travel together."""
        first = len(self._finished)
        self._finished.extend(finished)
        if any(each.cause is Cause.ANSWERED for each in self._finished[first:]):
            self._send_finished()
        elif self._gathering is None and len(self._finished) > first:
            loop = asyncio.get_running_loop()
            self._gathering = loop.call_later(GATHER_S, self._send_finished)

    async def run(self) -> None:
        """Send what is finished, for ever."""
        async with asyncio.TaskGroup() as sending:
            self._sending = sending
            try:
                self._send_finished()
                await asyncio.Event().wait()
            finally:
                # What is still gathered then goes to nobody; the broker sends it again.
                self._sending = None

    def _send_finished(self) -> None:
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        if self._sending is None or self._in_flight >= MAX_IN_FLIGHT:
            return
        finished, self._finished = self._finished, []
        for reply in group_replies(finished):
            self._in_flight += 1
            self._sending.create_task(self._send(reply))

    async def _send(self, reply: Reply[Parcel]) -> None:
        began_s = self.observer.now_s()
        confirmed = await publish_while(
            lambda: any(parcel.live for parcel in reply.settles),
            self._publish,
            as_routing_key(results(reply.agent)),
            reply.body,
            timeout_s=self._timeout_s,
        )
        self._in_flight -= 1
        self._send_finished()
        if confirmed:
            self.observer.confirmed(reply, began_s)
            for result in reply.results:
                self._journal.note(
                    Event.PUBLISHED, result.device, result.id, result.status.value
                )
            for cause, requests in Counter(reply.causes).items():
                self._ledger.end(cause, requests)
        for parcel, requests in Counter(reply.settles).items():
            if confirmed:
                parcel.settle(requests)
            else:
                parcel.drop(requests)
