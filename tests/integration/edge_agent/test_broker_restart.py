"""RabbitMQ goes away and comes back under an agent that is at work."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.node import Node
from tests.integration.edge_agent.conftest import Settings
from tests.integration.edge_agent.edge import (
    SHIRT,
    device,
    pool_models,
    serving,
    until,
    until_status,
    worker,
)
from tests.integration.edge_agent.test_devices import COPY_JSON

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(150),  # It starts a RabbitMQ twice.
]


@pytest.fixture
def node(short_tmp: Path) -> Iterator[Node]:
    """A RabbitMQ that may be restarted; no other test uses it."""
    made = Node(short_tmp / "rabbit", agents=["agent-1"])
    asyncio.run(made.start())
    yield made
    asyncio.run(made.kill())  # Nothing of it is kept, so it need not take its leave.


@pytest.fixture
def rabbit(node: Node) -> Node:
    """The settings of this module's agent name this node."""
    return node


async def test_while_rabbitmq_is_away_spills_wait_and_each_is_answered_once_after(
    node: Node, settings: Settings, mosquitto: str, tmp_path: Path
) -> None:
    spills = [f"r{number}" for number in range(60)]
    with worker(node.amqp_url("worker"), pool_models(tmp_path)):
        async with serving(settings()) as agent, device(mosquitto) as cam:
            sending = asyncio.Event()

            async def send() -> None:
                for number, id_ in enumerate(spills):
                    await cam.send("copy", {"id": id_, "inputs": COPY_JSON})
                    if number == 20:
                        sending.set()
                    await asyncio.sleep(0.005)  # A device's own pace.

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(send())
                await sending.wait()
                # As a power cut, with requests and results on their way.
                await node.kill()
            away = await until_status(agent, lambda status: not status["cloud"]["up"])
            assert away["cloud"]["error"]
            await cam.send("fashion", SHIRT)
            await until(lambda: any(each["source"] == "edge" for each in cam.answers))
            await until(lambda: all(cam.of(id_) for id_ in spills))
            await cam.send("copy", {"id": "away", "inputs": COPY_JSON})
            await until(lambda: cam.of("away"))
            assert [each["status"] for each in cam.of("away")] == ["accepted"]

            await node.start()
            for id_ in [*spills, "away"]:
                answer = await cam.final(id_, 60)
                assert (answer["status"], answer["source"]) == ("answered", "cloud")
            status = await until_status(
                agent, lambda each: not each["outbox"]["untold"]
            )
            assert status["outbox"]["open"] == 0
            assert status["outbox"]["answered"] == len(spills) + 1
            for id_ in [*spills, "away"]:
                finals = [each for each in cam.of(id_) if each["final"]]
                assert len(finals) == 1, id_
