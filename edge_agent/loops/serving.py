"""Answer a device's request here, or spill it. Never waits for the network or the disk.

What comes back says either the answer, or that the request is on its way and how to
learn that it is safely accepted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Final

import structlog

from broker.messages import Reason
from bundle.recipe import UnreadableImage
from edge_agent.adapters.litert import RunFailed
from edge_agent.adapters.model_runner import RunnerClosed, RunnerFull
from edge_agent.adapters.outbox import Outbox, OutboxFull
from edge_agent.core.accounts import Accounts
from edge_agent.core.answers import Answer, AnswerStatus, Source
from edge_agent.core.arrays import NotAnArray
from edge_agent.core.delivery import Channel
from edge_agent.core.delivery import Spill as StoredSpill
from edge_agent.core.payload import BadRequest, DeviceRequest
from edge_agent.core.quotas import Full
from edge_agent.core.routing import AnswerNow, Spill, after, before
from edge_agent.core.served import Served
from edge_agent.core.tensors import BadInput
from edge_agent.loops.cascading import Cascading
from edge_agent.loops.inputs import facts_of, inputs_of
from edge_agent.loops.outcomes import Outcomes
from edge_agent.loops.spans import RequestSpans
from edge_agent.loops.spilling import Doubt, OnItsWay, Spilling
from edge_agent.loops.uplink import Uplink
from edge_agent.settings import EVERY_MODEL

log = structlog.get_logger(__name__)

# What a device is refused for, and under which name that is counted.
REFUSALS: Final[dict[type[Exception], str]] = {
    BadRequest: "bad_request",
    BadInput: "bad_input",
    NotAnArray: "bad_input",
    UnreadableImage: "unreadable_image",
    RunnerFull: "model_busy",
}
NO_CLOUD: Final = "no_cloud"
AUDIT_BYTES: Final = 1024**2
# Audits end long before what they take could be missed by a device.
OUTBOX_FOR_AUDITS: Final = 0.1


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
        self._outcomes = outcomes
        self._has_cloud = has_cloud
        self._now_ms = now_ms
        self._default_deadline_ms = default_deadline_s * 1000.0
        self._cascading = cascading
        self._accounts = accounts
        self._spilling = Spilling(
            outbox=outbox,
            uplink=uplink,
            outcomes=outcomes,
            cascading=cascading,
            agent=agent,
            now_ms=now_ms,
        )
        # Told of each answer of the edge, before the cloud is asked: for shadows.
        self.on_answer: Callable[[DeviceRequest, Answer], None] = lambda _, __: None
        self._spans = spans
        self._forbid_capture = frozenset(forbid_capture)
        self._models: dict[str, Served] = {}
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

    async def _decide(self, request: DeviceRequest, began_ms: float) -> Answer | Doubt:
        """The edge's answer, or why the cloud is asked.

        Raises:
            BadInput, UnreadableImage, RunnerFull: the device is refused.
        """
        served = self._models.get(request.model)
        facts = facts_of(request, self._deadline_ms(request))
        route = before(facts, None if served is None else served.facts)
        if served is None or isinstance(route, Spill):
            if not isinstance(route, Spill):
                raise AssertionError("routing ran a model that is not there")
            return Doubt(route, None)
        try:
            outputs = await served.runner.infer(await inputs_of(request, served))
        except RunnerClosed:
            # Swapped between the look-up and the run: the new model answers.
            return await self._decide(request, began_ms)
        except RunFailed as error:
            version = served.manifest.version
            self._accounts.asked(request.model, version, failed=True)
            log.error("edge_model_failed", model=request.model, error=str(error))
            return Doubt(Spill(Reason.HARD, str(error)), None)
        judgement = served.judge(outputs, self._cascading.thresholds(served))
        self._accounts.asked(
            request.model,
            served.manifest.version,
            failed=judgement is not None and judgement.unusable,
        )
        held_back = self._cascading.held_back(served, judgement)
        answer = Answer(
            id=request.id or self._spilling.new_id(),
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
            return Doubt(stands, answer)
        if draw is not None:
            capture = self._may_capture(request)
            if self._spilling.audit(request, answer, draw, capture=capture):
                self.spilled[Reason.AUDIT] += 1
        return answer

    def _spill(
        self, request: DeviceRequest, doubt: Doubt, channel: Channel, began_ms: float
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
        try:
            sent = self._spilling.spill(
                request,
                doubt,
                channel,
                began_ms=began_ms,
                deadline_ms=self._deadline_ms(request),
                capture=self._may_capture(request),
            )
        except OutboxFull as error:
            return self._fall_back(
                request, doubt, str(error), error.full, error.retry_after_s
            )
        self.spilled[doubt.route.reason] += 1
        if doubt.edge is not None:
            self._accounts.spilled(request.model, doubt.edge.version)
        return sent

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
        doubt: Doubt,
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


def _counted_as(error: Exception) -> str:
    return next(name for kind, name in REFUSALS.items() if isinstance(error, kind))
