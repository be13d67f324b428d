"""The agent's part of each trace: the request from its arrival to its end, and the result.

Made only where traces are on; without them a device's own `traceparent` still travels
with the request. Spans that are open when the agent dies are lost with it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from edge_agent.core.answers import Answer, AnswerStatus
from edge_agent.core.delivery import Key
from edge_agent.core.payload import DeviceRequest
from lifecycle.tracing import Tracing

if TYPE_CHECKING:
    from opentelemetry.trace import Span

MAX_OPEN: Final = 4096


class RequestSpans:
    """Spans of the requests in hand. `tracing` exports them."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._asked: OrderedDict[Key, Span] = OrderedDict()
        self._heard: dict[Key, Span] = {}

    def asked(self, request: DeviceRequest) -> Span:
        """A device asks: the span goes on until it is answered."""
        return self._tracing.span(
            "agent",
            parent=request.traceparent,
            kind="server",
            attributes={
                "overspill.device": request.device,
                "overspill.model": request.model,
                "overspill.bytes": request.payload_bytes,
            },
        )

    def traceparent(self, span: Span) -> str:
        """What the request carries from here on."""
        return self._tracing.traceparent(span)

    def answered(self, span: Span, answer: Answer) -> None:
        """It was answered, or refused, without the cloud."""
        span.set_attribute("overspill.id", answer.id or "")
        self._describe(span, answer)
        span.end()

    def spilled(self, key: Key, span: Span, reason: str) -> None:
        """It went to the cloud."""
        span.set_attributes({"overspill.id": key[1], "overspill.spill": reason})
        self._asked[key] = span
        if len(self._asked) > MAX_OPEN:
            old, oldest = self._asked.popitem(last=False)
            self._heard.pop(old, oldest).end()
            oldest.end()

    def heard(self, key: Key) -> None:
        """A result came; only the first counts."""
        asked = self._asked.get(key)
        if asked is not None and key not in self._heard:
            parent = self._tracing.traceparent(asked)
            self._heard[key] = self._tracing.span(
                "result", parent=parent, kind="consumer"
            )

    def ended(self, key: Key, answer: Answer, told: bool) -> None:
        """Its outcome is recorded; `told` if whoever asked has it by that."""
        asked = self._asked.get(key)
        if asked is not None:
            self._describe(asked, answer)
        if told:
            self.told(key)

    def told(self, key: Key) -> None:
        """The device has its final answer, or nobody waits for one any more."""
        for spans in (self._heard, self._asked):
            span = spans.pop(key, None)
            if span is not None:
                span.end()

    def _describe(self, span: Span, answer: Answer) -> None:
        span.set_attribute("overspill.status", answer.status.value)
        if answer.source is not None:
            span.set_attribute("overspill.source", answer.source.value)
        if answer.status is not AnswerStatus.ANSWERED:
            self._tracing.fail(span, answer.reason or answer.status.value)
