"""What a running agent shows its operators: traces, pages over HTTP, a control socket."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools

import structlog

from edge_agent.adapters.control import ControlServer
from edge_agent.loops.spans import RequestSpans
from edge_agent.operator import Operator
from edge_agent.parts.requests import Requests
from edge_agent.settings import AgentSettings
from edge_agent.status import AgentStatus
from lifecycle.clock import Clock
from lifecycle.health import Pulse, readiness_page
from lifecycle.tracing import Tracing

log = structlog.get_logger(__name__)


def open_traces(
    stack: contextlib.AsyncExitStack, settings: AgentSettings
) -> RequestSpans | None:
    """What is traced of requests; None where the settings ask for nothing."""
    if settings.traces is None:
        return None
    tracing = Tracing(
        settings.traces, service="overspill-agent", instance=settings.agent_id
    )
    stack.push_async_callback(asyncio.to_thread, tracing.close)
    return RequestSpans(tracing)


async def serve_pages(
    stack: contextlib.AsyncExitStack,
    settings: AgentSettings,
    status: AgentStatus,
    clock: Clock,
) -> None:
    """Answer whether the agent lives and is ready, and its metrics, where asked to."""
    if settings.http_port is None:
        return
    # Without a port an agent need not hold what serves it.
    from lifecycle.metrics import Exposition  # noqa: PLC0415
    from lifecycle.pages import Pages  # noqa: PLC0415

    pulse = stack.enter_context(Pulse(clock))
    pages = Pages(
        settings.http_host,
        settings.http_port,
        {
            "/healthz": pulse.page,
            "/readyz": functools.partial(readiness_page, status.why_not_ready),
            "/metrics": Exposition(status.families).page,
        },
    )
    await stack.enter_async_context(pages)


async def serve_control(
    stack: contextlib.AsyncExitStack,
    settings: AgentSettings,
    status: AgentStatus,
    requests: Requests,
) -> None:
    """Answer the operator's commands on this machine."""
    operator = Operator(
        status=status,
        infer=requests.calls.answer,
        cancel=requests.outcomes.cancel,
        drift_seen=requests.cascading.drift_seen,
        limits=requests.limits,
    )
    try:
        await stack.enter_async_context(
            ControlServer(settings.control_socket, operator.reply_to)
        )
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.ENOSPC, errno.EIO):
            raise
        # Devices are served all the same, and telemetry goes on.
        log.error("control_not_served", error=str(error))
