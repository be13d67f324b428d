"""The devices' broker, embedded or beside the agent, when it is mistreated or absent."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from broker.ports import free_port as choose_port
from edge_agent.adapters.embedded_broker import EmbeddedBroker, PortTaken
from edge_agent.app import Agent
from edge_agent.settings import AgentSettings
from tests.integration.edge_agent.edge import SHIRT, device, serving, tiny, until_status
from tests.waiting import until

pytestmark = pytest.mark.integration

GARBAGE = (
    b"",
    b"\x00",
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x10\xff\xff\xff\xff\xff",  # a length that never ends
    b"\x10\xff\xff\xff\x7f" + bytes(1000),  # 256 MB are promised
    bytes(range(256)) * 40,
    # A CONNECT of MQTT 3.1.1, and then nonsense.
    b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x3c\x00\x02id" + b"\xff" * 100,
)


@pytest.fixture
def settings(short_tmp: Path) -> AgentSettings:
    return AgentSettings(
        agent_id="edge",
        state_dir=short_tmp / "agent",
        bundles=[tiny(short_tmp / "sure", threshold=0.0)],
        embedded_port=choose_port(),
        disk_reserve_bytes=0,
    )


# amqtt leaves it to the garbage collector to close what never said CONNECT.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_garbage_on_its_port_does_not_keep_devices_from_the_embedded_broker(
    settings: AgentSettings,
) -> None:
    port = settings.embedded_port
    async with serving(settings) as agent:
        for garbage in GARBAGE:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(garbage)
            with contextlib.suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(0.1):
                    await reader.read(100)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        async with device(f"mqtt://127.0.0.1:{port}") as cam:
            await cam.send("fashion", SHIRT)
            assert (await cam.next_answer(0))["source"] == "edge"
        assert (await agent.status())["local"]["up"]


async def test_two_embedded_brokers_do_not_share_a_port(free_port: int) -> None:
    async with EmbeddedBroker("127.0.0.1", free_port):
        with pytest.raises(PortTaken, match=f"127.0.0.1:{free_port}.*local_url"):
            async with EmbeddedBroker("127.0.0.1", free_port):
                pass
    async with EmbeddedBroker("127.0.0.1", free_port):
        pass  # It was given back.


@contextmanager
def mosquitto_on(port: int, folder: Path) -> Iterator[None]:
    config = folder / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    with subprocess.Popen(
        ["/usr/sbin/mosquitto", "-c", str(config)], stderr=subprocess.DEVNULL
    ) as server:
        try:
            yield
        finally:
            server.terminate()
            server.wait(10)


@pytest.mark.timeout(120)  # Links come back with a growing pause.
async def test_the_devices_broker_may_come_late_and_go(
    settings: AgentSettings, short_tmp: Path, free_port: int
) -> None:
    url = f"mqtt://127.0.0.1:{free_port}"
    late = settings.model_copy(update={"local_url": url})
    stop = asyncio.Event()
    async with Agent(late) as agent, asyncio.TaskGroup() as tasks:
        running = tasks.create_task(agent.run(stop))
        status = await until_status(agent, lambda each: each["local"]["error"])
        assert "nothing listens" in status["local"]["error"]
        # A program that embeds the agent is served all the while.
        assert (await agent.infer("fashion", SHIRT)).label
        for _ in range(2):
            with mosquitto_on(free_port, short_tmp):
                await until_status(agent, lambda each: each["local"]["up"])
                async with device(url) as cam:
                    await cam.send("fashion", SHIRT)
                    assert (await cam.next_answer(0))["source"] == "edge"
            await until_status(agent, lambda each: not each["local"]["up"])
        stop.set()
        await until(running.done)


async def test_an_agent_that_waits_for_its_devices_broker_can_be_ended(
    settings: AgentSettings, free_port: int
) -> None:
    url = f"mqtt://127.0.0.1:{free_port}"
    stop = asyncio.Event()
    async with (
        Agent(settings.model_copy(update={"local_url": url})) as agent,
        asyncio.timeout(5),
        asyncio.TaskGroup() as tasks,
    ):
        running = tasks.create_task(agent.run(stop))
        await asyncio.sleep(0.05)
        assert not running.done()
        stop.set()
