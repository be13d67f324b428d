"""Answer a device's request here, or spill it. Never waits for the network or the disk.

What comes back says either the answer, or that the request is on its way and how to
learn that it is safely accepted.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Final

import structlog

from broker.codec import pack
from broker.ids import uuid7
from broker.messages import EdgeOpinion, Priority, Reason, Request
from bundle.recipe import UnreadableImage, decode_image, image_size
from edge_agent.adapters.litert import RunFailed
from edge_agent.adapters.model_runner import RunnerClosed, RunnerFull
from edge_agent.adapters.outbox import Accepted, Outbox, OutboxFull
from edge_agent.core.accounts import Accounts
from edge_agent.core.answers import Answer, AnswerStatus, Array, Source
from edge_agent.core.arrays import NotAnArray
from edge_agent.core.delivery import Channel
from edge_agent.core.delivery import Spill as StoredSpill
from edge_agent.core.payload import BadRequest, DeviceRequest, Encoding, to_wire_inputs
from edge_agent.core.quotas import Full
from edge_agent.core.routing import (
    AnswerNow,
    RequestFacts,
    Spill,
    after,
    before,
)
from edge_agent.core.served import Served
from edge_agent.core.tensors import BadInput
from edge_agent.core.watch import Draw
from edge_agent.loops.cascading import Cascading
from edge_agent.loops.outcomes import Outcomes
from edge_agent.loops.spans import RequestSpans
from edge_agent.loops.uplink import Uplink
from edge_agent.settings import EVERY_MODEL

log = structlog.get_logger(__name__)

# Decoding more than this takes milliseconds, so it leaves the event loop.
INLINE_PIXELS: Final = 128 * 128

# What a device is refused for, and under which name that is counted.
REFUSALS: Final[dict[type[Exception], str]] = {
    BadRequest: "bad_request",
    BadInput: "bad_input",
    NotAnArray: "bad_input",
    UnreadableImage: "unreadable_image",
    RunnerFull: "model_busy",
}
NO_CLOUD: Final = "no_cloud"
# Nobody waits for an audit; it leaves when the pool has nothing better to do.
AUDIT_DEADLINE_MS: Final = 600_000.0
AUDIT_BYTES: Final = 1024**2
# Audits end long before what they take could be missed by a device.
OUTBOX_FOR_AUDITS: Final = 0.1


@dataclass(frozen=True, slots=True)
class OnItsWay:
    """The request was spilled; `accepted` ends once its row is safe."""

    spill: StoredSpill
    accepted: Accepted


@dataclass(frozen=True, slots=True)
class _Doubt:
    """Why the cloud is asked, and the edge's own answer if it has one."""

    route: Spill
    edge: Answer | None


@dataclass(slots=True)
class ServingCounters:
    """What has happened since the start."""

    requests: int = 0
    answered_edge: int = 0
    answered_fallback: int = 0
    refused: int = 0


class Serving:
    """Routes requests between the models of this agent and the cloud."""

    def __init__(  # noqa: PLR0913 - the parts it stands on
        self,
        *,
        outbox: Outbox,
        uplink: Uplink,
        outcomes: Outcomes,
        has_cloud: bool,
        now_ms: Callable[[], float],
        default_deadline_s: float,
        agent: str,
        cascading: Cascading,
        accounts: Accounts,
        spans: RequestSpans | None = None,
        forbid_capture: Collection[str] = (),
    ) -> None:
        self._outbox = outbox
        self._uplink = uplink
        self._outcomes = outcomes
        self._has_cloud = has_cloud
        self._now_ms = now_ms
        self._default_deadline_ms = default_deadline_s * 1000.0
        self._agent = agent
        self._cascading = cascading
        self._accounts = accounts
        # Told of each answer of the edge, before the cloud is asked: for shadows.
        self.on_answer: Callable[[DeviceRequest, Answer], None] = lambda _, __: None
        self._spans = spans
        self._forbid_capture = frozenset(forbid_capture)
        self._models: dict[str, Served] = {}
        self._seq = 0
        self.counters = ServingCounters()
        self.spilled: Counter[Reason] = Counter()
        self.refused: Counter[str] = Counter()

    def model(self, name: str) -> Served | None:
        """The model in service under that name."""
        return self._models.get(name)

    async def swap(self, served: Served) -> None:
        """Put a model in service; the one before finishes what it has begun."""
        old = self._models.get(served.manifest.name)
        self._models[served.manifest.name] = served
        self._cascading.watch(served.manifest)
        if old is not None:
            await old.runner.close()

    async def remove(self, name: str) -> None:
        """Take a model out of service: its requests spill from now on."""
        old = self._models.pop(name, None)
        if old is not None:
            await old.runner.close()

    async def close(self) -> None:
        """Free every model."""
        models, self._models = self._models, {}
        for served in models.values():
            await served.runner.close()

    async def handle(
        self, request: DeviceRequest, channel: Channel
    ) -> Answer | OnItsWay:
        """Answer, or spill and say so. Whatever was asked, nothing is raised."""
        if self._spans is None:
            return await self._handle(request, channel)
        span = self._spans.asked(request)
        request = replace(request, traceparent=self._spans.traceparent(span))
        reply = await self._handle(request, channel)
        if isinstance(reply, OnItsWay):
            self._spans.spilled(reply.spill.key, span, reply.spill.reason.value)
        else:
            self._spans.answered(span, reply)
        return reply

    async def _handle(
        self, request: DeviceRequest, channel: Channel
    ) -> Answer | OnItsWay:
        began_ms = self._now_ms()
        self.counters.requests += 1
        try:
            decided = await self._decide(request, began_ms)
            if isinstance(decided, Answer):
                if decided.source is Source.EDGE:
                    self.counters.answered_edge += 1
                else:
                    self.counters.answered_fallback += 1
                return decided
            return self._spill(request, decided, channel, began_ms)
        except tuple(REFUSALS) as error:
            self.count_refusal(_counted_as(error))
            return Answer.refused(
                request.id,
                request.device,
                request.model,
                reason=str(error),
                retry_after_s=(
                    error.retry_after_s if isinstance(error, RunnerFull) else None
                ),
            )

    def count_refusal(self, why: str) -> None:
        """A device, or a caller in this process, was refused."""
        self.counters.refused += 1
        self.refused[why] += 1

    async def _decide(self, request: DeviceRequest, began_ms: float) -> Answer | _Doubt:
        """The edge's answer, or why the cloud is asked.

        Raises:
            BadInput, UnreadableImage, RunnerFull: the device is refused.
        """
        served = self._models.get(request.model)
        facts = _facts(request, self._deadline_ms(request))
        route = before(facts, None if served is None else served.facts)
        if served is None or isinstance(route, Spill):
            if not isinstance(route, Spill):
                raise AssertionError("routing ran a model that is not there")
            return _Doubt(route, None)
        try:
            outputs = await served.runner.infer(await _inputs(request, served))
        except RunnerClosed:
            # Swapped between the look-up and the run: the new model answers.
            return await self._decide(request, began_ms)
        except RunFailed as error:
            version = served.manifest.version
            self._accounts.asked(request.model, version, failed=True)
            log.error("edge_model_failed", model=request.model, error=str(error))
            return _Doubt(Spill(Reason.HARD, str(error)), None)
        judgement = served.judge(outputs, self._cascading.thresholds(served))
        self._accounts.asked(
            request.model,
            served.manifest.version,
            failed=judgement is not None and judgement.unusable,
        )
        held_back = self._cascading.held_back(served, judgement)
        answer = Answer(
            id=request.id or self._new_id(),
            device=request.device,
            status=AnswerStatus.ANSWERED,
            source=Source.EDGE if held_back is None else Source.EDGE_FALLBACK,
            reason=None if held_back is None else f"{Reason.HARD.value}: {held_back}",
            label=served.label(judgement),
            confidence=None if judgement is None else judgement.confidence,
            model=request.model,
            version=served.manifest.version,
            ms=self._now_ms() - began_ms,
            outputs=outputs,
        )
        self.on_answer(request, answer)
        stands = after(judgement)
        draw = self._cascading.judged(
            served,
            judgement,
            self._deadline_ms(request),
            room=request.payload_bytes <= AUDIT_BYTES
            and self._outbox.mostly_free(OUTBOX_FOR_AUDITS),
        )
        if not isinstance(stands, AnswerNow):
            return _Doubt(stands, answer)
        if draw is not None:
            self._audit(request, answer, draw)
        return answer

    def _audit(self, request: DeviceRequest, answer: Answer, draw: Draw) -> None:
        """Ask the cloud too, for the books: nobody is told what it says.

        The spill is the agent's own under an id of its own, so it neither answers the
        device's id nor takes of the device's room.
        """
        try:
            spill = self._stored(
                replace(
                    request,
                    id=self._new_id(),
                    device=self._agent,
                    deadline_ms=AUDIT_DEADLINE_MS,
                    priority=Priority.BULK,
                    encoding=Encoding.MSGPACK,
                    traceparent=None,
                ),
                _Doubt(Spill(Reason.AUDIT, "drawn"), replace(answer, outputs=None)),
                Channel.CALL,
                self._now_ms(),
            )
            accepted = self._send(spill)
        except (OutboxFull, BadRequest) as error:
            self._cascading.audit_failed(draw, request.model)
            log.debug("audit_not_sent", model=request.model, why=str(error))
        else:
            self._cascading.audit_began(draw, spill)
            self.spilled[Reason.AUDIT] += 1
            accepted.add_done_callback(functools.partial(self._audit_kept, spill))

    def _audit_kept(self, spill: StoredSpill, accepted: Accepted) -> None:
        if accepted.cancelled() or accepted.exception() is None:
            return
        self._outcomes.forget(spill.key)
        self._cascading.audit_lost(spill)

    def _spill(
        self, request: DeviceRequest, doubt: _Doubt, channel: Channel, began_ms: float
    ) -> Answer | OnItsWay:
        """Commit the request and send it, side by side.

        Raises:
            OutboxFull: and the edge has no answer of its own to fall back on.
            BadRequest: its tensors cannot travel.
        """
        if not self._has_cloud:
            return self._fall_back(
                request,
                doubt,
                "this agent has no cloud: cloud_url is not set",
                NO_CLOUD,
            )
        spill = self._stored(request, doubt, channel, began_ms)
        try:
            accepted = self._send(spill)
        except OutboxFull as error:
            return self._fall_back(
                request, doubt, str(error), error.full, error.retry_after_s
            )
        self.spilled[doubt.route.reason] += 1
        if doubt.edge is not None:
            self._accounts.spilled(request.model, doubt.edge.version)
        return OnItsWay(spill, accepted)

    def _send(self, spill: StoredSpill) -> Accepted:
        """Offer it to the uplink and to the outbox.

        Raises:
            OutboxFull: there is no room, and nothing is left of it here.
        """
        try:
            self._outbox.check_room(spill.device, len(spill.request))
            self._outcomes.expect(spill)
            if spill.attempt:
                # Before the row, so that the pool works while it is written up.
                self._uplink.offer(spill)
            return self._outbox.accept(spill)
        except OutboxFull:
            self._outcomes.forget(spill.key)
            raise

    def unkept(self, spill: StoredSpill, why: OutboxFull) -> Answer:
        """What the device hears when the disk refused the row after all."""
        self._outcomes.forget(spill.key)
        if self._spans is not None:
            self._spans.told(spill.key)
        reason = f"{spill.reason.value}; {why}"
        if spill.edge is not None:
            self.counters.answered_fallback += 1
            return replace(spill.edge, source=Source.EDGE_FALLBACK, reason=reason)
        self.count_refusal(Full.NOT_WRITTEN)
        return Answer.refused(
            spill.id,
            spill.device,
            spill.model,
            reason=reason,
            retry_after_s=why.retry_after_s,
        )

    def _fall_back(
        self,
        request: DeviceRequest,
        doubt: _Doubt,
        why: str,
        counted_as: str,
        retry_after_s: float | None = None,
    ) -> Answer:
        reason = f"{doubt.route.reason.value}: {doubt.route.detail}; {why}"
        if doubt.route.reason is Reason.HARD:
            self._cascading.not_spilled(request.model)
        if doubt.edge is not None:
            self.counters.answered_fallback += 1
            return replace(doubt.edge, source=Source.EDGE_FALLBACK, reason=reason)
        self.count_refusal(counted_as)
        return Answer.refused(
            request.id,
            request.device,
            request.model,
            reason=reason,
            retry_after_s=retry_after_s,
        )

    def _stored(
        self, request: DeviceRequest, doubt: _Doubt, channel: Channel, began_ms: float
    ) -> StoredSpill:
        edge = doubt.edge
        id_ = request.id or (edge.id if edge is not None else None) or self._new_id()
        deadline_ms = began_ms + self._deadline_ms(request)
        tensors, medium = to_wire_inputs(request)
        self._seq += 1
        wire = Request(
            id=id_,
            device=request.device,
            model=request.model,
            reason=doubt.route.reason,
            expires_at_ms=max(0, round(deadline_ms + self._uplink.pool_offset_ms)),
            tensors=tensors,
            medium=medium,
            priority=request.priority,
            seq=self._seq,
            edge=None
            if edge is None or edge.version is None
            else EdgeOpinion(
                label=edge.label, confidence=edge.confidence, version=edge.version
            ),
        )
        if request.traceparent is not None:
            # Only then: a field that is set travels, even as None.
            wire = wire.model_copy(update={"traceparent": request.traceparent})
        if not self._may_capture(request):
            wire = wire.model_copy(update={"capture": False})
        packed = pack(wire)
        # Sent beside its commit where there is room; else it is due at once.
        beside = self._uplink.has_room(len(packed))
        return StoredSpill(
            device=request.device,
            id=id_,
            model=request.model,
            priority=request.priority,
            reason=doubt.route.reason,
            channel=channel,
            encoding=request.encoding.value,
            request=packed,
            accepted_ms=began_ms,
            deadline_ms=deadline_ms,
            due_ms=self._uplink.resend_at_ms(0) if beside else began_ms,
            attempt=int(beside),
            edge=edge,
        )

    def _may_capture(self, request: DeviceRequest) -> bool:
        """Whether the pool may keep it as an example, as far as is known here."""
        if not request.capture or self._forbid_capture & {request.model, EVERY_MODEL}:
            return False
        served = self._models.get(request.model)
        return served is None or served.manifest.capture

    def _deadline_ms(self, request: DeviceRequest) -> float:
        if request.deadline_ms is None:
            return self._default_deadline_ms
        return request.deadline_ms

    def _new_id(self) -> str:
        return uuid7(round(self._now_ms()), os.urandom(10))


def _counted_as(error: Exception) -> str:
    return next(name for kind, name in REFUSALS.items() if isinstance(error, kind))


def _facts(request: DeviceRequest, deadline_ms: float) -> RequestFacts:
    if request.medium is not None:
        width, height = image_size(request.medium[1])
        pixels: int | None = width * height
    else:
        pixels = None
    return RequestFacts(
        payload_bytes=request.payload_bytes,
        pixels=pixels,
        shapes={name: array.shape for name, array in (request.tensors or {}).items()},
        forced=request.forced,
        remaining_ms=deadline_ms,
    )


async def _inputs(request: DeviceRequest, served: Served) -> dict[str, Array]:
    """The tensors of a request, its image decoded by the bundle's recipe.

    Raises:
        BadInput: an image for a model that takes none.
        UnreadableImage: it does not decode.
    """
    if request.medium is None:
        return dict(request.tensors or {})
    recipe = served.manifest.preprocess
    if recipe is None:
        raise BadInput(
            f"model {request.model!r} takes tensors, not images: its bundle has no "
            "preprocess recipe"
        )
    data = request.medium[1]
    width, height = image_size(data)
    most = served.manifest.limits.max_pixels
    if width * height <= INLINE_PIXELS:
        return {recipe.input: decode_image(data, recipe, max_pixels=most)}
    decoded = await asyncio.to_thread(decode_image, data, recipe, max_pixels=most)
    return {recipe.input: decoded}
