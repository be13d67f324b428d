"""What a worker says of itself over HTTP, from its first moment to its last."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest

from broker.node import Node
from cloud_worker.app import Worker
from cloud_worker.settings import WorkerSettings
from tests.integration.cloud_worker.pool import (
    Agent,
    WorkerProcess,
    repository,
    request,
)
from tests.integration.pages import Sample, get, metrics, sample
from tests.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


async def test_a_worker_is_ready_only_when_it_is_warm_and_consumes(
    rabbit: Node, tmp_path: Path
) -> None:
    models = repository(tmp_path, it_ready="line_lite")
    settings = WorkerSettings(
        amqp_url=rabbit.amqp_url("worker"), models=models, http_port=0
    )
    ready, stop = asyncio.Event(), asyncio.Event()
    worker = Worker(settings, on_ready=lambda _: ready.set())
    async with asyncio.TaskGroup() as group:
        group.create_task(worker.run(stop))
        await until(lambda: worker.http_port)
        assert worker.http_port is not None
        status, why = await get(worker.http_port, "/readyz")
        assert (status, why) == (503, "not ready: loading and warming up its models\n")
        assert (await get(worker.http_port, "/healthz"))[0] == 200
        assert not ready.is_set()
        async with asyncio.timeout(60):
            await ready.wait()
        assert await get(worker.http_port, "/readyz") == (200, "ready\n")
        stop.set()


async def test_a_worker_without_rabbitmq_is_alive_and_not_ready(
    tmp_path: Path, free_port: int
) -> None:
    models = repository(tmp_path, it_alone="line_lite")
    url = f"amqp://nobody@127.0.0.1:{free_port}/"
    async with WorkerProcess(url, models, "--http-port", "0") as process:
        port = await served_port(process)
        await until(lambda: any("link down" in line for line in process.said))
        status, why = await get(port, "/readyz")
        assert status == 503
        assert f"nothing listens at amqp://127.0.0.1:{free_port}" in why
        assert (await get(port, "/healthz"))[0] == 200


async def test_a_worker_that_drains_is_not_ready_and_says_so(
    rabbit: Node, tmp_path: Path
) -> None:
    models = repository(tmp_path, it_drain="line_lite")
    async with (
        Agent(rabbit) as agent,
        WorkerProcess(
            rabbit.amqp_url("worker"),
            models,
            *("--http-port", "0", "--drain-s", "1"),
            OVERSPILL_WORKER_INLINE_BELOW_MS="0",
        ) as process,
    ):
        port = await served_port(process)
        await process.ready()
        model = process.model_process()
        assert model is not None
        process.stop_model()
        await agent.ask(request("drain-1", "it-drain"))
        held = sample("overspill_worker_held")
        async with asyncio.timeout(20):
            while (await metrics(port))[held] != 1:  # noqa: ASYNC110 - of a process
                await asyncio.sleep(0.02)
        process.signal(signal.SIGTERM)
        await until(lambda: any('"stopping"' in line for line in process.said))
        status, why = await get(port, "/readyz")
        assert (status, why) == (503, "not ready: draining, 1 requests held\n")
        # What it could not finish within its bound is another worker's.
        assert await process.ended() == 0
        (stopped,) = [line for line in process.said if '"event": "stopped"' in line]
        assert '"given_back": 1' in stopped
        async with WorkerProcess(rabbit.amqp_url("worker"), models):
            await agent.result("drain-1")
        assert len(agent.results["drain-1"]) == 1


async def test_the_metrics_tell_what_was_done_and_what_waits(
    rabbit: Node, tmp_path: Path
) -> None:
    models = repository(tmp_path, it_metrics="line_lite")
    options = ("--http-port", "0")
    async with (
        Agent(rabbit) as agent,
        WorkerProcess(
            rabbit.amqp_url("worker"),
            models,
            *options,
            OVERSPILL_WORKER_INLINE_BELOW_MS="0",
        ) as process,
    ):
        port = await served_port(process)
        await process.ready()
        ids = [f"m-{n}" for n in range(8)]
        await agent.ask(*(request(id_, "it-metrics") for id_ in ids))
        await agent.ask(request("m-late", "it-metrics", expires_at_ms=1))
        await agent.all_results([*ids, "m-late"])
        name, version = {"model": "it-metrics"}, {"version": "1"}
        wanted: Mapping[Sample, float] = {
            sample("overspill_worker_ready"): 1,
            sample("overspill_worker_link_up"): 1,
            sample("overspill_worker_requests_taken_total"): 9,
            sample(
                "overspill_worker_requests_ended_total", status="ok", reason="answered"
            ): 8,
            sample(
                "overspill_worker_requests_ended_total",
                status="expired",
                reason="on_arrival",
            ): 1,
            sample("overspill_worker_results_published_total"): 9,
            sample("overspill_worker_batch_size_sum", **name, **version): 8,
            sample("overspill_worker_infer_seconds_count", **name, **version): 1,
            sample(
                "overspill_worker_queue_wait_seconds_count",
                **name,
                **{"class": "norm"},
            ): 8,
            sample("overspill_worker_request_seconds_count", **name): 9,
            sample("overspill_worker_held"): 0,
            sample("overspill_worker_acknowledgement_lag_seconds"): 0,
            sample("overspill_worker_runner_restarts_total", runner="it-metrics/1"): 0,
            sample("overspill_pool_workers", **name): 1,
            sample("overspill_pool_queue_messages", **name): 0,
            sample("overspill_pool_drain_seconds"): 0,
        }
        async with asyncio.timeout(20):
            while True:
                said = await metrics(port)
                if all(said.get(each) == value for each, value in wanted.items()):
                    break
                await asyncio.sleep(0.05)
        memory = said[
            sample(
                "overspill_worker_runner_resident_memory_bytes", runner="it-metrics/1"
            )
        ]
        assert memory > 10_000_000
        assert said[sample("process_resident_memory_bytes")] > 10_000_000
        assert 0 < said[sample("overspill_worker_busy_seconds_total", **name)] < 5


async def test_the_wait_of_the_pool_follows_its_queue(
    rabbit: Node, tmp_path: Path
) -> None:
    models = repository(tmp_path, it_wait="line_lite")
    options = ("--http-port", "0", "--max-batch", "2")
    environment = {"OVERSPILL_WORKER_INLINE_BELOW_MS": "0"}
    url = rabbit.amqp_url("worker")
    async with (
        Agent(rabbit) as agent,
        WorkerProcess(url, models, *options, **environment) as process,
    ):
        port = await served_port(process)
        await process.ready()
        process.stop_model()
        ids = [f"w-{n}" for n in range(600)]
        for id_ in ids:
            await agent.ask(request(id_, "it-wait"))
        name = {"model": "it-wait"}
        async with asyncio.timeout(20):
            while True:
                said = await metrics(port)
                # The prefetch is here, which follows the model's cost; the rest waits.
                if (
                    0
                    < said.get(sample("overspill_pool_queue_messages", **name), 0)
                    < 600
                ):
                    break
                await asyncio.sleep(0.05)
        assert said[sample("overspill_pool_wait_seconds", **name)] > 0
        assert said[sample("overspill_pool_drain_seconds")] > 0
        assert said[sample("overspill_pool_work_seconds", **name)] > 0
        assert said[sample("overspill_worker_acknowledgement_lag_seconds")] > 0
        process.resume_model()
        await agent.all_results(ids)
        assert max(each[0].pool_wait_ms for each in agent.results.values()) > 0


async def test_a_port_that_is_taken_is_named_in_a_line(tmp_path: Path) -> None:
    models = repository(tmp_path, it_taken="line_lite")
    taken = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    async with taken:
        port = taken.sockets[0].getsockname()[1]
        url = "amqp://nobody@127.0.0.1:1/"
        async with WorkerProcess(url, models, "--http-port", str(port)) as process:
            assert await process.ended() == 1
            assert f"127.0.0.1:{port}" in process.said[-1]
            assert "choose another http_host or http_port" in process.said[-1]


async def served_port(process: WorkerProcess) -> int:
    """Where its health is, as its log says."""
    line = re.compile(r'"url": "http://127\.0\.0\.1:(\d+)"')
    await until(lambda: any(map(line.search, process.said)) or process.code is not None)
    found = next(filter(None, map(line.search, process.said)), None)
    assert found is not None, "\n".join(process.said)
    return int(found.group(1))
