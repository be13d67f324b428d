"""Answer what never reached a worker's batch: unrouted requests and dead letters.

RabbitMQ acknowledges a publish that no queue takes, so an agent would wait for ever
if nobody told it. What can be served after all is sent on its way again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container, Mapping
from functools import partial
from typing import Any, Final, Protocol

from broker.codec import WireError, decode
from broker.dead_letters import read_death
from broker.messages import Request, Result
from broker.topics import RequestAddress, read_request_key
from broker.topology import UNANSWERED_QUEUE, UNROUTED_QUEUE
from cloud_worker.core.dead_letters import (
    MAX_REPUBLISHED,
    REPUBLISHED,
    times_republished,
)
from cloud_worker.core.ledger import Aside, Cause
from cloud_worker.core.legible import legible_subject, legible_subjects
from cloud_worker.core.replies import Finished
from cloud_worker.core.results import Subject, expired, failed
from cloud_worker.loops.complaints import Complaints
from cloud_worker.loops.parcels import Delivery, Parcel, Room
from cloud_worker.loops.replies import Replies, publish_while

SIDE_QUEUES: Final = (UNROUTED_QUEUE, UNANSWERED_QUEUE)
PREFETCH: Final = 32

Ending = Callable[[Subject], Result]


class Republish(Protocol):
    """Publish on the topic exchange with headers, as `AmqpLink.publish` does."""

    async def __call__(
        self,
        routing_key: str,
        body: bytes,
        *,
        headers: Mapping[str, Any],
        timeout_s: float,
    ) -> None:
        """Publish.

        Raises:
            LinkDown: not confirmed.
        """
        ...


class SideQueues:
    """The loop over `unrouted` and `infer.unanswered`.

    Args:
        models: what this worker serves.
        publish: on the topic exchange.
        restore: sees that queues and bindings are there, as `AmqpLink.restore` does.
        replies: where answers leave.
        room: how much may be in hand.
        complaints: where what nobody can be told of is said.
        timeout_s: until a publish is confirmed.
    """

    def __init__(  # noqa: PLR0913 - the parts it stands on
        self,
        models: Container[str],
        publish: Republish,
        *,
        restore: Callable[[float], Awaitable[bool]],
        replies: Replies,
        room: Room,
        complaints: Complaints,
        timeout_s: float = 10.0,
    ) -> None:
        self._models = models
        self._publish = publish
        self._restore = restore
        self._replies = replies
        self._room = room
        self._timeout_s = timeout_s
        self._ledger = room.ledger
        self._complaints = complaints

    async def take(self, delivery: Delivery) -> None:
        """Take one delivery of a side queue over."""
        dead = delivery.queue == UNANSWERED_QUEUE
        self._ledger.put_aside(Aside.DEAD_LETTERS if dead else Aside.UNROUTED)
        address = read_request_key(delivery.routing_key)
        if address is None:
            await self._drop(delivery)
        elif dead:
            await self._answer_dead(delivery, address)
        elif self._may_go_again(delivery, address):
            await self._send_again(delivery)
        else:
            reason = f"no worker serves model {address.model!r}"
            await self._answer(delivery, address, self._failing(reason), Cause.UNROUTED)

    async def _drop(self, delivery: Delivery) -> None:
        if ".dn." in delivery.routing_key or delivery.routing_key.startswith("w1."):
            # An agent that is gone, or a wave that has all it needs.
            self._ledger.put_aside(Aside.RESULTS_DROPPED)
        else:
            self._ledger.put_aside(Aside.STRAYS_DROPPED)
            self._complaints.say(
                "unrouted message dropped",
                routing_key=delivery.routing_key[:200],
                size_bytes=len(delivery.body),
            )
        delivery.ack()

    def _may_go_again(self, delivery: Delivery, address: RequestAddress) -> bool:
        return (
            address.model in self._models
            and times_republished(delivery.headers) < MAX_REPUBLISHED
        )

    async def _send_again(self, delivery: Delivery) -> None:
        # A request for what is served here was unrouted: its queue or binding is gone.
        if not await self._restore(delivery.received_at):
            return  # the link connects anew, and brings it again
        headers = {REPUBLISHED: times_republished(delivery.headers) + 1}
        confirmed = await publish_while(
            lambda: delivery.live,
            partial(self._publish, headers=headers),
            delivery.routing_key,
            delivery.body,
            timeout_s=self._timeout_s,
        )
        if confirmed:
            self._ledger.put_aside(Aside.SENT_AGAIN)
            delivery.ack()

    async def _answer_dead(self, delivery: Delivery, address: RequestAddress) -> None:
        death = read_death(delivery.headers)
        if death.answered:
            self._ledger.put_aside(Aside.ANSWERED_ALREADY)
            delivery.ack()
            return
        stamps = self._replies.stamps

        def expiring(subject: Subject) -> Result:
            return expired(subject, death.reason, stamps.now())

        if death.expired:
            await self._answer(delivery, address, expiring, Cause.DEAD_LATE)
        else:
            failing = self._failing(death.reason)
            await self._answer(delivery, address, failing, Cause.DEAD)

    def _failing(self, reason: str) -> Ending:
        return lambda subject: failed(subject, reason, self._replies.stamps.now())

    async def _answer(
        self,
        delivery: Delivery,
        address: RequestAddress,
        ending: Ending,
        cause: Cause,
    ) -> None:
        subjects = _subjects(delivery, address.model)
        if not subjects:
            self._ledger.put_aside(Aside.UNTELLABLE)
            self._complaints.say(
                "a message that nobody can be told of is dropped",
                queue=delivery.queue,
                routing_key=delivery.routing_key[:200],
                size_bytes=len(delivery.body),
                first_bytes=delivery.body[:64].hex(),
            )
            delivery.ack()
            return
        await self._room.wait(address.model)
        parcel = Parcel(delivery, address, len(subjects), self._room)
        self._ledger.take(len(subjects))
        self._replies.finish(
            Finished(address.agent, ending(subject), parcel, cause)
            for subject in subjects
        )


def _subjects(delivery: Delivery, model: str) -> list[Subject]:
    try:
        envelope = decode(delivery.body, Request)
    except WireError:
        return legible_subjects(delivery.body, model)
    subjects = [Subject.of(request) for request in envelope.items]
    for item in envelope.bad:
        subject = legible_subject(item.id, item.device, model)
        if subject is not None:
            subjects.append(subject)
    return subjects
