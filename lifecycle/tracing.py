"""Spans of W3C traces, sent to an OpenTelemetry collector. The only user of OpenTelemetry.

Off unless an endpoint is set, and then nothing of it is imported: `None` stands for no
tracing, and callers ask that before they make anything. A collector that is away costs
spans, never a request: they wait in a bounded queue in a thread of the exporter's own.

A trace goes on by its `traceparent` (https://www.w3.org/TR/trace-context/), which the
messages carry. Sampling follows the parent; of traces that begin here the SDK keeps what
OTEL_TRACES_SAMPLER says.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final, Literal

import structlog
from typing_extensions import override

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span

log = structlog.get_logger(__name__)

EXPORT_TIMEOUT_S: Final = 5.0
CLOSE_TIMEOUT_S: Final = 2.0
REASONS_KEPT: Final = 16

Kind = Literal["internal", "server", "consumer", "producer"]
Attributes = Mapping[str, str | int | float | bool]
Parent = str
"""A `traceparent`."""


class TelemetryMissing(Exception):
    """An endpoint is set, and OpenTelemetry is not installed."""


class Tracing:
    """Makes spans and exports them until it is closed.

    Args:
        endpoint: of OTLP over HTTP, as `http://collector:4318/v1/traces`.
        service: `service.name` of every span.
        instance: `service.instance.id`.

    Raises:
        TelemetryMissing: the extra `telemetry` is not installed.
    """

    def __init__(self, endpoint: str, *, service: str, instance: str) -> None:
        try:
            from opentelemetry import trace  # noqa: PLC0415 - see the module
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
                OTLPSpanExporter,
            )
            from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
            from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
            from opentelemetry.sdk.trace.export import (  # noqa: PLC0415
                BatchSpanProcessor,
            )
            from opentelemetry.trace.propagation.tracecontext import (  # noqa: PLC0415
                TraceContextTextMapPropagator,
            )
        except ModuleNotFoundError as error:
            raise TelemetryMissing(
                f"traces are set, but the Python module {error.name} is not installed: "
                "run `pip install 'overspill[telemetry]'`"
            ) from error
        self._trace = trace
        resource = Resource.create(
            {"service.name": service, "service.instance.id": instance}
        )
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._exporter = OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_TIMEOUT_S)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        _speak_as_we_do()
        self._tracer = self._provider.get_tracer("overspill")
        self._propagator = TraceContextTextMapPropagator()
        log.info("traces exported", endpoint=endpoint)

    def span(
        self,
        name: str,
        *,
        parent: Parent | None = None,
        kind: Kind = "internal",
        attributes: Attributes | None = None,
        links: Iterable[Parent] = (),
        start_ns: int | None = None,
    ) -> Span:
        """A span that its caller ends; a root when there is no parent.

        Args:
            name: what is done.
            parent: the span that it is a part of.
            kind: its role towards other programs.
            attributes: what is to be said of it.
            links: spans of other traces that it has to do with.
            start_ns: Unix time; now when left out.
        """
        made = [
            self._trace.Link(context)
            for each in links
            if (context := self._span_context(each)).is_valid
        ]
        return self._tracer.start_span(
            name,
            context=self._context(parent),
            kind=self._trace.SpanKind[kind.upper()],
            attributes=dict(attributes) if attributes else None,
            links=made,
            start_time=start_ns,
        )

    def traceparent(self, span: Span) -> Parent:
        """How a span is named as the parent of others."""
        carrier: dict[str, str] = {}
        context = self._trace.set_span_in_context(span)
        self._propagator.inject(carrier, context)
        return carrier["traceparent"]

    def fail(self, span: Span, reason: str) -> None:
        """Mark a span as failed."""
        code = self._trace.StatusCode.ERROR
        span.set_status(self._trace.Status(code, reason))

    def close(self) -> None:
        """Send what waits, within seconds. Blocks; call it in a thread."""
        # A collector that is away is tried again for as long as its exporter lives.
        limit = threading.Timer(CLOSE_TIMEOUT_S, self._exporter.shutdown)
        limit.start()
        self._provider.shutdown()
        limit.cancel()

    def _context(self, parent: Parent | None) -> Context:
        carrier = {} if parent is None else {"traceparent": parent}
        # Not the current context: a parent is always named.
        from opentelemetry.context import Context  # noqa: PLC0415

        return self._propagator.extract(carrier, Context())

    def _span_context(self, parent: Parent):  # type: ignore[no-untyped-def] # noqa: ANN202
        return self._trace.get_current_span(self._context(parent)).get_span_context()


class _Said(logging.Handler):
    """OpenTelemetry's warnings in our log, each kind of them once."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._kinds: set[str] = set()

    @override
    def emit(self, record: logging.LogRecord) -> None:
        kind = str(record.msg)
        if kind not in self._kinds and len(self._kinds) < REASONS_KEPT:
            self._kinds.add(kind)
            log.warning("traces not exported", reason=record.getMessage()[:300])


def _speak_as_we_do() -> None:
    library = logging.getLogger("opentelemetry")
    if not any(isinstance(each, _Said) for each in library.handlers):
        library.addHandler(_Said())
        library.propagate = False


def unix_zero_ns(now_s: float) -> int:
    """Unix time at the zero of a monotonic clock that says `now_s`.

    Asked once for all times that are compared: between two askings both clocks move.
    """
    return time.time_ns() - int(now_s * 1e9)
