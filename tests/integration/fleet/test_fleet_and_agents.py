"""The daemon and the operator's commands, with a real RabbitMQ and agents on MQTT."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aio_pika
import pytest

from broker import topics
from broker.amqp.link import AmqpLink
from broker.codec import decode, encode
from broker.messages import Command, Desired, Report, SlotReport
from broker.mqtt.link import MqttLink
from broker.mqtt.target import MqttTarget
from broker.node import Node
from broker.topology import TELEMETRY_QUEUE
from bundle import layout
from bundle.folder_tree import FolderTree
from fleet.app import Fleet, run_daemon
from fleet.settings import FleetSettings

pytestmark = pytest.mark.integration

MODEL = {"format": 1, "name": "fashion", "version": "1", "model_file": "m.tflite"}


@pytest.fixture(autouse=True)
async def nothing_told_before(rabbit: Node) -> None:
    """Agents of other tests have reported to the same broker."""
    async with await aio_pika.connect(rabbit.amqp_url("admin")) as connection:
        channel = await connection.channel()
        queue = await channel.get_queue(TELEMETRY_QUEUE)
        await queue.purge()


@pytest.fixture
def settings(
    rabbit: Node,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trusted_home: Callable[[Path], Path],
) -> FleetSettings:
    trusted_home(tmp_path / "home")
    monkeypatch.setenv("OVERSPILL_FLEET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OVERSPILL_FLEET_AMQP_URL", rabbit.amqp_url("fleet"))
    return FleetSettings()


async def say(*words: str | Path) -> Any:
    """Run a command as an operator does, in a process of its own, and read its JSON."""
    command = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "fleet", *map(str, words), "--json", stdout=PIPE
    )
    async with asyncio.timeout(30):
        stdout, _ = await command.communicate()
    assert command.returncode == 0
    return json.loads(stdout)


@asynccontextmanager
async def daemon(settings: FleetSettings) -> AsyncIterator[None]:
    stop = asyncio.Event()
    assert settings.amqp_url is not None
    with Fleet(settings) as fleet:
        async with asyncio.TaskGroup() as group:
            group.create_task(run_daemon(fleet, settings.amqp_url, stop))
            yield
            stop.set()


class Edge:
    """An agent's side of the wire: reports, and hears hints."""

    def __init__(self, rabbit: Node, name: str) -> None:
        self.name = name
        self.hints: asyncio.Queue[Command] = asyncio.Queue()
        self.link = MqttLink(
            MqttTarget.from_url(rabbit.mqtt_url(name)),
            client_id=name,
            subscriptions=[topics.downlink(name)],
            on_message=self._heard,
        )

    def _heard(self, topic: str, payload: bytes) -> None:
        if topic == topics.commands(self.name):
            for each in decode(payload, Command).items:
                self.hints.put_nowait(each)

    async def report(self, *slots: SlotReport) -> None:
        said = Report(agent=self.name, at_ms=1, slots=list(slots))
        await self.send(encode(said))

    async def send(self, payload: bytes) -> None:
        await self.link.publish(topics.telemetry(self.name), payload)

    async def hint(self) -> Command:
        async with asyncio.timeout(20):
            return await self.hints.get()


@asynccontextmanager
async def edge(rabbit: Node, name: str) -> AsyncIterator[Edge]:
    agent = Edge(rabbit, name)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(agent.link.run())
        async with asyncio.timeout(20):
            await agent.link.wait_up()
        yield agent
        task.cancel()


async def until(settings: FleetSettings, holds: Callable[[Fleet], bool]) -> None:
    """Return once the fleet's state is what is waited for."""
    with Fleet(settings) as fleet:
        async with asyncio.timeout(30):
            while not holds(fleet):  # noqa: ASYNC110 - another process writes it
                await asyncio.sleep(0.1)


def heard_of(*agents: str) -> Callable[[Fleet], bool]:
    return lambda fleet: [each.agent for each in fleet.devices()] == list(agents)


def serves(version: str) -> Callable[[Fleet], bool]:
    return lambda fleet: any(
        each.active == version for device in fleet.devices() for each in device.slots
    )


def desired(settings: FleetSettings, agent: str) -> tuple[str, int]:
    tree = FolderTree(Path(settings.registry))
    data = tree.read(layout.desired(agent), max_bytes=10**6)
    (document,) = decode(data, Desired).items
    (model,) = document.models
    return model.version, model.generation


def slot(active: str | None, generation: int = 0) -> SlotReport:
    return SlotReport(model="fashion", active=active, generation=generation)


async def publish(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps(MODEL))
    (folder / "m.tflite").write_bytes(b"weights")
    await say("model", "publish", folder)


async def test_a_rollout_is_told_to_an_agent_and_done_when_the_agent_says_so(
    rabbit: Node, settings: FleetSettings, tmp_path: Path
) -> None:
    await publish(tmp_path)
    async with daemon(settings), edge(rabbit, "agent-1") as agent:
        await agent.report(slot(None))
        await until(settings, heard_of("agent-1"))
        (listed,) = await say("device", "list")
        assert listed["agent"] == "agent-1"

        begun = await say("rollout", "start", "fashion", "1")
        assert begun["hint_error"] is None
        assert (await agent.hint()).action == "desired_changed"
        version, generation = desired(settings, "agent-1")
        assert (version, generation) == ("1", begun["generation"])

        await agent.report(slot("1", generation))
        await until(settings, serves("1"))
        (status,) = (await say("rollout", "status"))["rollouts"]
        assert status["state"] == "done"
        (row,) = status["agents"]
        assert (row["agent"], row["state"], row["version"]) == (
            "agent-1",
            "updated",
            "1",
        )


async def test_an_agent_that_appears_later_is_told_of_what_all_should_serve(
    rabbit: Node, settings: FleetSettings, tmp_path: Path
) -> None:
    await publish(tmp_path)
    await say("rollout", "start", "fashion", "1")
    async with daemon(settings), edge(rabbit, "agent-2") as agent:
        await agent.report()
        assert (await agent.hint()).action == "desired_changed"
        assert desired(settings, "agent-2") == ("1", 1)


async def test_an_agent_cannot_speak_for_another_and_nonsense_stops_nothing(
    rabbit: Node, settings: FleetSettings
) -> None:
    async with daemon(settings), edge(rabbit, "agent-3") as agent:
        await agent.send(b"\xc1 nonsense")
        await agent.send(encode(Report(agent="agent-4", at_ms=1)))
        await until(settings, heard_of("agent-3"))
    assert await left(rabbit) == 0


async def test_reports_sent_while_the_daemon_was_away_are_read_when_it_returns(
    rabbit: Node, settings: FleetSettings
) -> None:
    async with daemon(settings), edge(rabbit, "agent-4") as agent:
        await agent.report(slot("1"))
        await until(settings, serves("1"))
    async with edge(rabbit, "agent-4") as agent:
        await agent.report(slot("2"))
    (listed,) = await say("device", "list")
    assert listed["slots"][0]["active"] == "1"
    async with daemon(settings):
        await until(settings, serves("2"))
    assert await left(rabbit) == 0


async def left(rabbit: Node) -> int:
    """How many reports are still in the queue, with nobody consuming."""
    link = AmqpLink(rabbit.amqp_url("admin"), name="test")
    async with asyncio.TaskGroup() as group:
        task = group.create_task(link.run())
        async with asyncio.timeout(20):
            await link.wait_up()
            depth = await link.depth(TELEMETRY_QUEUE)
        task.cancel()
    return depth
