"""One worker for all the models of these tests, and one agent with all their bundles."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from broker.node import Node
from edge_agent.settings import AgentSettings
from tests.consumed import until_consumed
from tests.integration.edge_agent.edge import WorkerProcess, worker
from tests.integration.examples.models import (
    EXAMPLES,
    built_of_tokens,
    cloud_of_tokens,
    pool_models,
)


class Served(NamedTuple):
    """A worker with three cloud models, and the bundle that one of them taught."""

    worker: WorkerProcess
    words: Path


@pytest.fixture(scope="module")
def served(rabbit: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The worker starts while the student of token ids learns."""
    cloud = tmp_path_factory.mktemp("tokens") / "cloud"
    cloud_of_tokens(cloud)
    models = pool_models(tmp_path_factory.mktemp("pool"), cloud)
    with ThreadPoolExecutor(1) as beside, ExitStack() as stack:
        entered = worker(rabbit.amqp_url("worker"), models)
        ready = beside.submit(stack.enter_context, entered)
        built = built_of_tokens(tmp_path_factory.mktemp("words"), cloud)
        assert built.bundle is not None
        process = ready.result()
        names = [each.name for each in models.iterdir()]
        asyncio.run(until_consumed(rabbit.amqp_url("worker"), *names))
        yield Served(process, built.bundle)


@pytest.fixture
def settings(
    rabbit: Node, mosquitto: str, short_tmp: Path, served: Served
) -> AgentSettings:
    """An agent with the three bundles, between Mosquitto and that worker's RabbitMQ."""
    edge = [EXAMPLES / name / "edge" for name in ("diamonds", "spoken")]
    return AgentSettings(
        agent_id="agent-2",
        state_dir=short_tmp / "agent",
        cloud_url=rabbit.mqtt_url("agent-2"),
        local_url=mosquitto,
        bundles=[*edge, served.words],
        audit_share=0.3,
        # However slow the machine, the pool is never spared for want of time.
        default_deadline_s=3600,
        disk_reserve_bytes=0,
    )
