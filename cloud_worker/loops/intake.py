"""Take deliveries apart: envelopes into requests that are checked and ready to run.

Whatever is wrong with a request is answered to its agent; whatever has nobody to
answer goes to the dead letters and the log. No message ends the loop. Who sent it is
read from the routing key, which the broker enforced, never from the payload.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from broker.codec import BadItem, Envelope, WireError, decode
from broker.messages import Medium, Request, Result, Tensor
from broker.topics import RequestAddress, read_request_key
from broker.topology import request_queue
from cloud_worker.core.allowance import Allowance
from cloud_worker.core.costs import size_bucket
from cloud_worker.core.intake import Inputs, Invalid, validate
from cloud_worker.core.ledger import Aside, Cause
from cloud_worker.core.legible import legible_subject, legible_subjects
from cloud_worker.core.line import Group, Item
from cloud_worker.core.padding import pad
from cloud_worker.core.replies import Finished
from cloud_worker.core.results import Subject, expired, failed
from cloud_worker.core.serving import Serving
from cloud_worker.core.spec import ServedModel
from cloud_worker.core.split import Joint, split
from cloud_worker.loops.complaints import Complaints
from cloud_worker.loops.media import Decoder
from cloud_worker.loops.parcels import Delivery, Held, Parcel, Room
from cloud_worker.loops.replies import Replies
from cloud_worker.loops.stamps import Stamps
from cloud_worker.loops.usage import Usage
from lifecycle.clock import Clock
from lifecycle.journal import NOBODY, Event, Journal

# A worker serves one vhost, which is one tenant.
TENANT: Final = ""
EXPIRED_ON_ARRIVAL: Final = "its time was over when it reached the worker"
# What nobody can be told of is kept for the operators, but a flood of it would push
# out everything else that they keep.
BURIED_AT_MOST: Final = 100
BURIED_EVERY_S: Final = 60.0


class Intake:
    """From deliveries to requests that wait for a batch."""

    def __init__(  # noqa: PLR0913 - the parts it stands on
        self,
        models: Mapping[str, Serving],
        *,
        offer: Callable[[Iterable[Item[Held]]], None],
        replies: Replies,
        clock: Clock,
        room: Room,
        decoder: Decoder,
        complaints: Complaints,
        usage: Usage | None = None,
        journal: Journal = NOBODY,
    ) -> None:
        self._models = models
        self._usage = usage or Usage()
        self._groups = _Groups()
        self._offer = offer
        self._replies = replies
        self._clock = clock
        self._room = room
        self._decoder = decoder
        self._journal = journal
        self._complaints = complaints
        self._burials = Allowance(BURIED_AT_MOST, BURIED_EVERY_S)

    async def take(self, delivery: Delivery) -> None:
        """Take one delivery of a request queue over."""
        address = read_request_key(delivery.routing_key)
        if address is None:
            await self._bury(delivery, "its routing key names no agent")
            return
        await self._room.wait(address.model)
        if not delivery.live:
            return
        model = self._models.get(address.model)
        if model is None:
            await self._turn_away(delivery, address)
            return
        try:
            envelope = decode(delivery.body, Request)
        except WireError as error:
            await self._refuse(delivery, address, str(error))
            return
        for request in envelope.items:
            self._journal.note(Event.SEEN, request.device, request.id)
        await self._admit(delivery, address, model, envelope)

    async def _admit(
        self,
        delivery: Delivery,
        address: RequestAddress,
        model: Serving,
        envelope: Envelope[Request],
    ) -> None:
        bad = self._answerable(envelope.bad, address.model)
        count = len(envelope.items) + len(bad)
        if not count:
            await self._bury(delivery, envelope.bad[0].reason)
            return
        parcel = Parcel(delivery, address, count, self._room)
        self._room.ledger.take(count)
        self._replies.observer.came(address.model, count)
        stamps = self._replies.stamps
        desk = _Desk(
            parcel,
            address,
            model,
            self._clock,
            stamps,
            self._usage,
            groups=self._groups,
        )
        decoding: list[str] = []
        try:
            for subject, reason in bad:
                desk.fail(subject, reason, Cause.UNREADABLE)
            media = desk.sort(envelope.items)
            self._hand_over(desk)
            decoding = [version.key for _, _, version in media]
            self._usage.begin(decoding)
            for request, medium, version in media:
                # What needs no decoding has gone ahead.
                read = await self._decoder.decode(medium, version)
                desk.check(request, read, version)
                self._hand_over(desk)
        finally:
            self._usage.end(decoding)
            # Cancelled when its channel dies: the broker delivers it again.
            for _ in range(count - desk.handed_over):
                parcel.drop()

    def _hand_over(self, desk: _Desk) -> None:
        finished, ready = desk.cleared()
        if finished:
            self._replies.finish(finished)
        if ready:
            self._offer(ready)

    async def _refuse(
        self, delivery: Delivery, address: RequestAddress, reason: str
    ) -> None:
        """Answer an envelope that is not one to whoever can be read in it."""
        subjects = legible_subjects(delivery.body, address.model)
        if not subjects:
            await self._bury(delivery, reason)
            return
        self._complaints.say("envelope refused", agent=address.agent, reason=reason)
        parcel = Parcel(delivery, address, len(subjects), self._room)
        self._room.ledger.take(len(subjects))
        stamp = self._replies.stamps.now()
        self._replies.finish(
            Finished(
                address.agent,
                failed(subject, reason, stamp),
                parcel,
                Cause.UNREADABLE,
            )
            for subject in subjects
        )

    def _answerable(
        self, bad: Sequence[BadItem], model: str
    ) -> list[tuple[Subject, str]]:
        answerable = []
        for item in bad:
            subject = legible_subject(item.id, item.device, model)
            if subject is not None:
                answerable.append((subject, item.reason))
        if illegible := len(bad) - len(answerable):
            self._room.ledger.put_aside(Aside.ILLEGIBLE, illegible)
            self._complaints.say(
                "items have no legible id", items=illegible, reason=bad[0].reason
            )
        return answerable

    async def _turn_away(self, delivery: Delivery, address: RequestAddress) -> None:
        """Leave a model that is no longer served to the workers that serve it."""
        own = request_queue(address.model, address.priority).name
        if delivery.queue == own:
            await delivery.reject(requeue=True)
        else:
            await self._bury(delivery, f"this worker does not serve {address.model!r}")

    async def _bury(self, delivery: Delivery, reason: str) -> None:
        """Dead-letter what nobody can be told of, unless there is plenty of it."""
        self._complaints.say(
            "delivery rejected",
            queue=delivery.queue,
            routing_key=delivery.routing_key[:200],
            size_bytes=len(delivery.body),
            reason=reason,
        )
        if self._burials.admits(self._clock.monotonic()):
            self._room.ledger.put_aside(Aside.BURIED)
            await delivery.reject(requeue=False)
        else:
            self._room.ledger.put_aside(Aside.NOISE_DROPPED)
            delivery.ack()


class _Desk:
    """One envelope being sorted into what is finished and what is ready to run.

    Attributes:
        handed_over: requests that were `cleared`, which others end from then on.
    """

    def __init__(  # noqa: PLR0913 - what an envelope is sorted by
        self,
        parcel: Parcel,
        address: RequestAddress,
        model: Serving,
        clock: Clock,
        stamps: Stamps,
        usage: Usage,
        *,
        groups: _Groups,
    ) -> None:
        self._parcel = parcel
        self._address = address
        self._model = model
        self._stamps = stamps
        self._usage = usage
        self._groups = groups
        self._now_s = clock.monotonic()
        self._wall_ms = clock.wall_ms()
        self._finished: list[Finished[Parcel]] = []
        self._ready: list[Item[Held]] = []
        self.handed_over = 0

    def cleared(self) -> tuple[list[Finished[Parcel]], list[Item[Held]]]:
        """What was sorted since the last call: finished, and ready to run."""
        finished, ready = self._finished, self._ready
        self._finished, self._ready = [], []
        # The parts of a split request count as the one that it is.
        self.handed_over += len(finished) + sum(item.work.part == 0 for item in ready)
        return finished, ready

    def sort(
        self, requests: Iterable[Request]
    ) -> list[tuple[Request, Medium, ServedModel]]:
        """Sort what can be sorted now; give back what must be decoded first."""
        media = []
        for request in requests:
            if self._turned_away(request):
                continue
            version = self._model.choose(request.id)
            if request.medium is not None:
                media.append((request, request.medium, version))
            else:
                self.check(request, request.tensors or {}, version)
        return media

    def fail(self, subject: Subject, reason: str, cause: Cause) -> None:
        """Answer `failed`."""
        self._finish(failed(subject, reason, self._stamps.now()), cause)

    def check(
        self,
        request: Request,
        tensors: Mapping[str, Tensor] | Invalid,
        model: ServedModel,
    ) -> None:
        """Take a request whose inputs are known, if they fit the model."""
        inputs = tensors if isinstance(tensors, Invalid) else validate(tensors, model)
        subject = Subject.of(request)
        if isinstance(inputs, Invalid):
            self.fail(subject, inputs.reason, Cause.INVALID)
            return
        self._usage.ask(model.key, self._now_s)
        if model.padding is not None:
            inputs = pad(inputs, model.padding, model.spec.inputs)
        held = Held(
            self._parcel, subject, model, inputs, traceparent=request.traceparent
        )
        if inputs.rows <= model.max_batch:
            self._ready.append(self._item(request, held))
            return
        parts = list(split(inputs, model.max_batch))
        joint = Joint(len(parts))
        self._ready.extend(
            self._item(request, replace(held, inputs=part, joint=joint, part=index))
            for index, part in enumerate(parts)
        )

    def _item(self, request: Request, held: Held) -> Item[Held]:
        left_s = (request.expires_at_ms - self._wall_ms) / 1000
        return Item(
            group=self._groups.of(held.model, held.inputs),
            priority=self._address.priority,
            deadline_s=self._now_s + left_s,
            size_bytes=held.inputs.size_bytes,
            rows=held.inputs.rows,
            flow=(TENANT, self._parcel.agent, request.device),
            work=held,
        )

    def _turned_away(self, request: Request) -> bool:
        """Whether it is over before its inputs are looked at."""
        if request.model != self._address.model:
            self.fail(
                Subject.of(request),
                f"it names model {request.model!r} but was sent to the topic of "
                f"{self._address.model!r}",
                Cause.WRONG_TOPIC,
            )
            return True
        if request.expires_at_ms <= self._wall_ms:
            subject = Subject.of(request)
            late = expired(subject, EXPIRED_ON_ARRIVAL, self._stamps.now())
            self._finish(late, Cause.LATE)
            return True
        return False

    def _finish(self, result: Result, cause: Cause) -> None:
        parcel = self._parcel
        self._finished.append(Finished(parcel.agent, result, parcel, cause))


class _Groups:
    """The groups of requests. Those that come one after the other are mostly of one."""

    def __init__(self) -> None:
        self._last: tuple[ServedModel, Inputs, Group] | None = None

    def of(self, model: ServedModel, inputs: Inputs) -> Group:
        """The group of a request with these inputs."""
        if self._last is not None:
            of, like, group = self._last
            if (
                model is of
                and inputs.rows == like.rows
                and inputs.signature == like.signature
            ):
                return group
        group = _group(model, inputs)
        # Without what was sent.
        self._last = (model, replace(inputs, buffers=()), group)
        return group


def _group(model: ServedModel, inputs: Inputs) -> Group:
    bucket = size_bucket(inputs.size_bytes // inputs.rows)
    return Group(
        model.name,
        inputs.signature,
        model.max_batch,
        version=model.version,
        size_bucket=bucket if model.spec.sized_by_item else 0,
    )
