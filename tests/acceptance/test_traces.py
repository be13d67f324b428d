"""One trace from a device through agent, queue and batch to its result: real processes."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from typing_extensions import override

from broker.node import Node
from broker.ports import free_port
from lifecycle.tracing import Tracing
from tests.acceptance.processes import agent
from tests.integration.cloud_worker import pool
from tests.integration.edge_agent.edge import device
from tests.waiting import until

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(120)]  # real processes

# The exporter sends what it has every five seconds, unless it is told otherwise.
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "200"}


class Collector:
    """Takes OTLP over HTTP, and keeps the spans with the service that sent them."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, Span]] = []
        kept = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                for each in ExportTraceServiceRequest.FromString(body).resource_spans:
                    (service,) = [
                        attribute.value.string_value
                        for attribute in each.resource.attributes
                        if attribute.key == "service.name"
                    ]
                    for scope in each.scope_spans:
                        kept.extend((service, span) for span in scope.spans)
                self.send_response(200)
                self.end_headers()

            @override
            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/traces"

    def of(self, trace_id: bytes) -> dict[str, tuple[str, Span]]:
        """The spans of one trace by name."""
        return {
            span.name: (service, span)
            for service, span in tuple(self.spans)
            if span.trace_id == trace_id
        }


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    for name, value in SOON.items():
        monkeypatch.setenv(name, value)
    made = Collector()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def trace_of(traceparent: str) -> bytes:
    return bytes.fromhex(traceparent.split("-")[1])


async def test_one_trace_shows_the_whole_way_of_a_request(
    rabbit: Node, short_tmp: Path, collector: Collector
) -> None:
    models = pool.repository(short_tmp / "models", it_trace="line_lite")
    port = free_port()
    tracing = Tracing(collector.url, service="camera", instance="cam1")
    span = tracing.span("device", kind="producer")
    async with (
        pool.WorkerProcess(
            rabbit.amqp_url("worker"),
            models,
            OVERSPILL_WORKER_TRACES=collector.url,
        ) as worker,
        agent(
            short_tmp,
            agent_id="agent-1",
            cloud_url=rabbit.mqtt_url("agent-1"),
            embedded_port=port,
            traces=collector.url,
        ),
        device(f"mqtt://127.0.0.1:{port}") as cam,
    ):
        await worker.ready()
        asked = {
            "id": "traced",
            "inputs": {"x": [[1.0, 2.0, 3.0, 4.0]]},
            "traceparent": tracing.traceparent(span),
        }
        await cam.send("it-trace", asked)
        assert (await cam.final("traced"))["status"] == "answered"
        span.end()
        await asyncio.to_thread(tracing.close)
        trace = trace_of(tracing.traceparent(span))
        names = {"device", "agent", "queue", "batch", "infer", "publish", "result"}
        await until(lambda: collector.of(trace).keys() >= names)
    spans = collector.of(trace)
    assert spans.keys() == names
    services = {name: service for name, (service, _) in spans.items()}
    assert services == {
        "device": "camera",
        **dict.fromkeys(("agent", "result"), "overspill-agent"),
        **dict.fromkeys(("queue", "batch", "infer", "publish"), "overspill-worker"),
    }
    ids = {name: span.span_id for name, (_, span) in spans.items()}
    parents = {name: span.parent_span_id for name, (_, span) in spans.items()}
    assert parents == {
        "device": b"",
        "agent": ids["device"],
        "queue": ids["agent"],
        "batch": ids["agent"],
        "infer": ids["batch"],
        "publish": ids["agent"],
        "result": ids["agent"],
    }
    times = {
        name: (span.start_time_unix_nano, span.end_time_unix_nano)
        for name, (_, span) in spans.items()
    }
    assert {name for name, (start, end) in times.items() if start > end} == set()
    assert times["agent"][0] <= times["queue"][0] <= times["queue"][1]
    assert times["queue"][1] <= times["batch"][0] <= times["infer"][0]
    assert times["infer"][1] <= times["batch"][1] <= times["agent"][1]


async def test_a_batch_is_linked_to_each_request_in_it(
    rabbit: Node, short_tmp: Path, collector: Collector
) -> None:
    models = pool.repository(short_tmp / "models", it_links="line_lite")
    parents = [f"00-{n:032x}-{n:016x}-01" for n in (1, 2, 3)]
    unsampled = f"00-{9:032x}-{9:016x}-00"
    broken = "00-no-trace"
    async with (
        pool.Agent(rabbit) as asking,
        pool.WorkerProcess(
            rabbit.amqp_url("worker"),
            models,
            OVERSPILL_WORKER_TRACES=collector.url,
        ) as worker,
    ):
        await worker.ready()
        items = [
            pool.request(f"l-{n}", "it-links", traceparent=parent)
            for n, parent in enumerate([unsampled, broken, *parents])
        ]
        await asking.ask(*items)
        await asking.all_results(each.id for each in items)
        await until(
            lambda: all("publish" in collector.of(trace_of(each)) for each in parents),
            20,
        )
    found = [collector.of(trace_of(each)) for each in parents]
    # The pool may have cut them in several batches, each in its first request's trace.
    batches = [spans["batch"][1] for spans in found if "batch" in spans]
    links = [link.trace_id for batch in batches for link in batch.links]
    assert sorted(links) == sorted(map(trace_of, parents))
    known = {batch.span_id for batch in batches}
    for spans in found:
        assert spans.keys() - {"batch", "infer"} == {"queue", "publish"}
        if "batch" not in spans:
            _, queue = spans["queue"]
            (link,) = queue.links
            assert link.span_id in known
    assert len({span.trace_id for _, span in collector.spans}) == len(parents)


async def test_a_collector_that_is_away_costs_no_answer(
    rabbit: Node, short_tmp: Path
) -> None:
    models = pool.repository(short_tmp / "models", it_away="line_lite")
    nowhere = f"http://127.0.0.1:{free_port()}/v1/traces"
    async with (
        pool.Agent(rabbit) as asking,
        pool.WorkerProcess(
            rabbit.amqp_url("worker"), models, OVERSPILL_WORKER_TRACES=nowhere
        ) as worker,
    ):
        await worker.ready()
        traceparent = f"00-{7:032x}-{7:016x}-01"
        await asking.ask(pool.request("a-1", "it-away", traceparent=traceparent))
        await asking.result("a-1")
        worker.signal(signal.SIGTERM)
        assert await worker.ended() == 0
        said = [line for line in worker.said if "traces not exported" in line]
        assert 1 <= len(said) <= 3
        # Not in the library's own words, which are no JSON.
        assert not any(line.startswith("Transient") for line in worker.said)
