"""Simulated agents that visit a fleet which runs already, at a RabbitMQ of its own."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from broker import topology
from broker.amqp.delivery import Delivery
from broker.amqp.link import AmqpLink
from broker.node import Node
from bundle.folder_tree import FolderTree
from bundle.tree_source import TreeSource
from cloud_worker.loops.updates import PREFETCH, Updates
from fleet.settings import FleetSettings
from tests.conftest import WIRE_AGENTS
from tests.integration.broker.links import running
from tests.integration.fleet.test_fleet_and_agents import (
    daemon,
    nothing_told_before,
    say,
    settings,
)

__all__ = ["nothing_told_before", "settings"]

pytestmark = pytest.mark.integration

MANIFEST = {"format": 1, "name": "visited", "version": "2", "model_file": "m.tflite"}


@asynccontextmanager
async def pool(rabbit: Node, settings: FleetSettings) -> AsyncIterator[None]:
    """What serves updates of a worker."""
    source = TreeSource(FolderTree(Path(settings.registry)))

    async def take(delivery: Delivery) -> None:
        await updates.take(delivery)

    link = AmqpLink(
        rabbit.amqp_url("worker"),
        name="pool",
        queues=topology.standing_queues(),
        consume={topology.GET_QUEUE: PREFETCH},
        on_delivery=take,
    )
    updates = Updates(source, link.publish)
    async with running(link.run):
        yield


async def simulate(*words: str | Path) -> tuple[int | None, str, str]:
    command = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "overspill", "simulate", *map(str, words)),
        stdout=PIPE,
        stderr=PIPE,
    )
    async with asyncio.timeout(90):
        out, err = await command.communicate()
    return command.returncode, out.decode(), err.decode()


async def sessions(rabbit: Node) -> set[str]:
    """Of the visitors: other tests may use the broker's other names."""
    return {
        each
        for each in await rabbit.queues()
        for visitor in WIRE_AGENTS[:3]
        if f"subscription-{visitor}" in each
    }


@pytest.mark.timeout(150)
async def test_visitors_take_a_rollout_of_the_fleet_and_leave_nothing_at_its_broker(
    rabbit: Node, settings: FleetSettings, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "m.tflite").write_bytes(b"a model" * 1000)
    (bundle / "manifest.json").write_text(json.dumps(MANIFEST))
    passwords = tmp_path / "passwords"
    known = rabbit.info.passwords
    passwords.write_text("".join(f"{name}={known[name]}\n" for name in known))
    await say("model", "publish", bundle)
    async with daemon(settings), pool(rabbit, settings):
        # They come later, and join.
        await say("rollout", "start", "visited", "2", "--probation", "0s")
        code, out, err = await simulate(
            *("--broker", f"mqtt://127.0.0.1:{rabbit.info.mqtt_port}"),
            *("--passwords", passwords, "--prefix", "wire-", "--agents", "3"),
            *("--root", Path(settings.home) / "trust" / "root.json"),
            *("--model", "visited", "--to", "2", "--no-faults", "--json"),
            *("--processes", "1"),
        )
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    assert found["counts"] == {"converged": 3}
    assert [each["agent"] for each in found["each"]] == list(WIRE_AGENTS[:3])
    assert not await sessions(rabbit)
