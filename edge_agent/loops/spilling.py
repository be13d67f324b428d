"""Make a spill of a request: its packed bytes on their way, its row beside them.

Never waits for the network or the disk. Audits are spills of the agent's own.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import structlog

from broker.codec import pack
from broker.ids import uuid7
from broker.messages import EdgeOpinion, Priority, Reason, Request
from edge_agent.adapters.outbox import Accepted, Outbox, OutboxFull
from edge_agent.core.answers import Answer
from edge_agent.core.delivery import Channel
from edge_agent.core.delivery import Spill as StoredSpill
from edge_agent.core.payload import BadRequest, DeviceRequest, Encoding, to_wire_inputs
from edge_agent.core.promise_books import Draw
from edge_agent.core.routing import Spill
from edge_agent.loops.cascading import Cascading
from edge_agent.loops.outcomes import Outcomes
from edge_agent.loops.uplink import Uplink

log = structlog.get_logger(__name__)

# Nobody waits for an audit; it leaves when the pool has nothing better to do.
AUDIT_DEADLINE_MS: Final = 600_000.0


@dataclass(frozen=True, slots=True)
class OnItsWay:
    """The request was spilled; `accepted` ends once its row is safe."""

    spill: StoredSpill
    accepted: Accepted


@dataclass(frozen=True, slots=True)
class Doubt:
    """Why the cloud is asked, and the edge's own answer if it has one."""

    route: Spill
    edge: Answer | None


class Spilling:
    """Hands spills to the outbox and to the uplink, side by side.

    Args:
        outbox: keeps them.
        uplink: sends them.
        outcomes: told whose results to expect.
        cascading: told what became of audits.
        agent: whose own spills audits are.
        now_ms: the agent's own time.
    """

    def __init__(
        self,
        *,
        outbox: Outbox,
        uplink: Uplink,
        outcomes: Outcomes,
        cascading: Cascading,
        agent: str,
        now_ms: Callable[[], float],
    ) -> None:
        self._outbox = outbox
        self._uplink = uplink
        self._outcomes = outcomes
        self._cascading = cascading
        self._agent = agent
        self._now_ms = now_ms
        self._seq = 0

    def spill(
        self,
        request: DeviceRequest,
        doubt: Doubt,
        channel: Channel,
        *,
        began_ms: float,
        deadline_ms: float,
        capture: bool,
    ) -> OnItsWay:
        """Commit the request and send it, side by side.

        Args:
            request: as the device sent it.
            doubt: why the cloud is asked.
            channel: where its outcome is told.
            began_ms: when it came, in the agent's own time.
            deadline_ms: how long from then it may take.
            capture: whether the pool may keep it as an example.

        Raises:
            OutboxFull: there is no room, and nothing is left of it here.
            BadRequest: its tensors cannot travel.
        """
        spill = self._stored(
            request,
            doubt,
            channel,
            began_ms=began_ms,
            deadline_ms=deadline_ms,
            capture=capture,
        )
        return OnItsWay(spill, self._send(spill))

    def audit(
        self, request: DeviceRequest, answer: Answer, draw: Draw, *, capture: bool
    ) -> bool:
        """Ask the cloud too, for the books: nobody is told what it says.

        The spill is the agent's own under an id of its own, so it neither answers the
        device's id nor takes of the device's room.

        Returns:
            Whether it is on its way.
        """
        own = replace(
            request,
            id=self.new_id(),
            device=self._agent,
            priority=Priority.BULK,
            encoding=Encoding.MSGPACK,
            traceparent=None,
        )
        doubt = Doubt(Spill(Reason.AUDIT, "drawn"), replace(answer, outputs=None))
        try:
            sent = self.spill(
                own,
                doubt,
                Channel.CALL,
                began_ms=self._now_ms(),
                deadline_ms=AUDIT_DEADLINE_MS,
                capture=capture,
            )
        except (OutboxFull, BadRequest) as error:
            self._cascading.audit_failed(draw, request.model)
            log.debug("audit_not_sent", model=request.model, why=str(error))
            return False
        self._cascading.audit_began(draw, sent.spill)
        kept = functools.partial(self._audit_kept, sent.spill)
        sent.accepted.add_done_callback(kept)
        return True

    def new_id(self) -> str:
        """An id that no other request has."""
        return uuid7(round(self._now_ms()), os.urandom(10))

    def _audit_kept(self, spill: StoredSpill, accepted: Accepted) -> None:
        if accepted.cancelled() or accepted.exception() is None:
            return
        self._outcomes.forget(spill.key)
        self._cascading.audit_lost(spill)

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

    def _stored(
        self,
        request: DeviceRequest,
        doubt: Doubt,
        channel: Channel,
        *,
        began_ms: float,
        deadline_ms: float,
        capture: bool,
    ) -> StoredSpill:
        edge = doubt.edge
        id_ = request.id or (edge.id if edge is not None else None) or self.new_id()
        ends_ms = began_ms + deadline_ms
        tensors, medium = to_wire_inputs(request)
        self._seq += 1
        wire = Request(
            id=id_,
            device=request.device,
            model=request.model,
            reason=doubt.route.reason,
            expires_at_ms=max(0, round(ends_ms + self._uplink.pool_offset_ms)),
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
        if not capture:
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
            deadline_ms=ends_ms,
            due_ms=self._uplink.resend_at_ms(0) if beside else began_ms,
            attempt=int(beside),
            edge=edge,
        )
