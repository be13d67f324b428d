"""A pool of one worker, and the settings of an agent between it and its devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.node import Node
from edge_agent.settings import AgentSettings
from tests.integration.edge_agent.edge import (
    WorkerProcess,
    pool_models,
    tiny,
    worker,
)

Settings = Callable[..., AgentSettings]


@pytest.fixture(scope="module")
def pool(
    rabbit: Node, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WorkerProcess]:
    """A worker that serves `copy` and `fashion`, one for all tests of a module."""
    models = pool_models(tmp_path_factory.mktemp("pool"))
    with worker(rabbit.amqp_url("worker"), models) as process:
        yield process


@pytest.fixture
def settings(rabbit: Node, mosquitto: str, short_tmp: Path) -> Settings:
    """An agent of the shared RabbitMQ and this test's Mosquitto, sure of its answers."""
    sure = tiny(short_tmp / "sure", threshold=0.0)

    def made(**more: Any) -> AgentSettings:
        usual: dict[str, Any] = {
            "agent_id": "agent-1",
            "state_dir": short_tmp / "agent",
            "cloud_url": rabbit.mqtt_url("agent-1"),
            "local_url": mosquitto,
            "bundles": [sure],
            "resend_after_s": 1.0,
            "disk_reserve_bytes": 0,
        }
        return AgentSettings(**{**usual, **more})

    return made
