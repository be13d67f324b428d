"""Devices speak MQTT here. Every message gets a reply, whatever was in it.

The reply is the acknowledgement: an answer, `accepted` once the request is on the
disk, or `refused` with a reason. The broker's own acknowledgement is never relied on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

import structlog

from broker.link import LinkDown
from edge_agent.adapters.outbox import (
    Committed,
    Outbox,
    OutboxFailed,
    OutboxFull,
    Recorded,
)
from edge_agent.core.answers import Answer
from edge_agent.core.delivery import Channel, Spill, Stage
from edge_agent.core.payload import (
    BadRequest,
    DeviceRequest,
    Encoding,
    PayloadLimits,
    detect_encoding,
    parse,
    render,
)
from edge_agent.loops.outcomes import Outcomes
from edge_agent.loops.serving import Serving
from edge_agent.loops.spilling import OnItsWay
from edge_agent.loops.uplink import Link

log = structlog.get_logger(__name__)

AnswerPolicy: TypeAlias = Literal["wait", "provisional"]

# Not `infer/+/+`: a device whose id holds a slash must hear that it may not.
REQUEST_FILTER: Final = "infer/#"
BUSY_RETRY_S: Final = 1.0


@dataclass(slots=True)
class IngressCounters:
    """What has happened since the start."""

    received: int = 0
    bad: int = 0
    refused_busy: int = 0
    replies_lost: int = 0
    unheard: int = 0


class Ingress:
    """Takes device messages from a link's callback and works on a bounded number."""

    def __init__(  # noqa: PLR0913 - the parts it stands on
        self,
        *,
        serving: Serving,
        outcomes: Outcomes,
        outbox: Outbox,
        limits: PayloadLimits,
        limit: int,
        answers: AnswerPolicy | None = None,
        now_ms: Callable[[], float],
    ) -> None:
        self._serving = serving
        self._outcomes = outcomes
        self._outbox = outbox
        self._limits = limits
        self._limit = limit
        self._answers = answers
        self._now_ms = now_ms
        self._in_hand = 0
        self._refusals = 0
        self._tasks: asyncio.TaskGroup | None = None
        self._link: Link | None = None
        self.counters = IngressCounters()

    async def run(self, link: Link) -> None:
        """Work on what `on_message` takes, until cancelled."""
        self._link = link
        # A run that failed has ended its tasks, some before they began.
        self._in_hand = self._refusals = 0
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self._tasks = None

    def on_message(self, topic: str, payload: bytes) -> None:
        """Take one message of `infer/{device}/{model}`."""
        if self._tasks is None:
            # Not running yet: the device hears nothing and sends again.
            self.counters.unheard += 1
            return
        self.counters.received += 1
        names = topic.removeprefix("infer/")
        device, slash, model = names.rpartition("/")
        if not slash:
            device, model = names, ""  # It will be told that it named no model.
        if self._in_hand >= self._limit:
            self._refuse_busy(device, model, payload)
            return
        self._in_hand += 1
        self._tasks.create_task(self._work(device, model, payload))

    def _refuse_busy(self, device: str, model: str, payload: bytes) -> None:
        self.counters.refused_busy += 1
        if self._tasks is None or self._refusals >= self._limit:
            self.counters.replies_lost += 1
            return
        # Later for each, so that those refused together do not come back together.
        retry_after_s = BUSY_RETRY_S * (1.0 + self._refusals / self._limit)
        self._refusals += 1
        self._tasks.create_task(self._reply_busy(device, model, payload, retry_after_s))

    async def _reply_busy(
        self, device: str, model: str, payload: bytes, retry_after_s: float
    ) -> None:
        try:
            id_ = None
            encoding = detect_encoding(payload)
            try:
                id_ = parse(device, model, payload, limits=self._limits).id
            except BadRequest as error:
                id_ = error.id
            reason = f"the agent has {self._limit} requests in hand; send again later"
            refusal = Answer.refused(
                id_, device, model, reason=reason, retry_after_s=retry_after_s
            )
            await self._reply(refusal, encoding)
        finally:
            self._refusals -= 1

    async def _work(self, device: str, model: str, payload: bytes) -> None:
        try:
            await self._handle(device, model, payload)
        except Exception as error:  # a message never ends the daemon
            log.exception("request_crashed", device=device, model=model)
            reason = f"the agent failed on this request: {type(error).__name__}"
            await self._reply(
                Answer.refused(None, device, model, reason=reason),
                detect_encoding(payload),
            )
        finally:
            self._in_hand -= 1

    async def _handle(self, device: str, model: str, payload: bytes) -> None:
        try:
            request = parse(device, model, payload, limits=self._limits)
        except BadRequest as error:
            self.counters.bad += 1
            refusal = Answer.refused(error.id, device, model, reason=error.reason)
            await self._reply(refusal, error.encoding)
            return
        try:
            if request.id is not None and await self._seen_before(request, request.id):
                return
        except OutboxFailed as error:
            # The edge can answer all the same; a spill will hear of it again.
            log.error("resend_not_recognised", id=request.id, error=str(error))
        reply = await self._serving.handle(request, Channel.MQTT)
        if isinstance(reply, OnItsWay):
            await self._accept(request, reply)
        else:
            await self._reply(reply, request.encoding)

    async def _seen_before(self, request: DeviceRequest, id_: str) -> bool:
        recorded = await self._outbox.find((request.device, id_))
        if recorded is None:
            return False
        await self._repeat(request, id_, recorded)
        return True

    async def _repeat(
        self, request: DeviceRequest, id_: str, recorded: Recorded
    ) -> None:
        """A resent id hears what is known of it; nothing is done again."""
        if recorded.stage is Stage.OPEN or recorded.answer is None:
            again = Answer.accepted(
                id_, request.device, request.model, reason="sent before", ms=0.0
            )
            await self._reply(again, request.encoding)
        else:
            self._outcomes.tell_again((request.device, id_), recorded.answer)

    async def _accept(self, request: DeviceRequest, sent: OnItsWay) -> None:
        try:
            ended = await sent.accepted
        except OutboxFull as error:
            # The disk refused the row: what was sent beside it is a stranger now.
            unkept = self._serving.unkept(sent.spill, error)
            await self._reply(unkept, request.encoding)
            return
        match ended:
            case Committed():
                await self._reply(self._acknowledgement(sent.spill), request.encoding)
            case Recorded():
                await self._repeat(request, sent.spill.id, ended)
            case _:
                pass  # The answer came first and is on its way to the device.

    def _acknowledgement(self, spill: Spill) -> Answer:
        """What a device hears once its spill is safe: the edge's answer, or `accepted`.

        Not before: a device that heard any answer does not send again.
        """
        ms = self._now_ms() - spill.accepted_ms
        if spill.edge is not None and self._provisional(spill.model):
            return replace(spill.edge, final=False, reason=spill.reason.value, ms=ms)
        return Answer.accepted(
            spill.id, spill.device, spill.model, reason=spill.reason.value, ms=ms
        )

    def _provisional(self, model: str) -> bool:
        served = self._serving.model(model)
        policy = self._answers
        if policy is None and served is not None:
            policy = served.manifest.answers
        return policy == "provisional"

    async def _reply(self, answer: Answer, encoding: Encoding) -> None:
        link = self._link
        if link is None:
            return
        try:
            await link.publish(f"answer/{answer.device}", render(answer, encoding))
        except LinkDown:
            # Nothing was promised: without a reply the device sends again.
            self.counters.replies_lost += 1
        except ValueError:
            # The device's name is no topic, so there is nowhere to reply to.
            self.counters.replies_lost += 1
