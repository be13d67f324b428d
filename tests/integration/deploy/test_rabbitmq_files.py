"""rabbitmq.conf, enabled_plugins and rendered definitions, by booting a node with them.

The three files are used as they are. A second configuration file, which RabbitMQ reads
after the first, moves ports and the definitions' place to this machine's.
"""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request as HttpRequest
from urllib.request import urlopen

import aio_pika
import aiomqtt
import pytest
from aiormq.exceptions import AMQPConnectionError
from typing_extensions import override

from broker import topics
from broker.messages import Priority
from broker.node import Node, NodeInfo
from broker.node_server import Server
from broker.ports import free_port
from deploy import render

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
CALL_TIMEOUT_S = 30.0
# A node boots, and `rabbitmqctl` starts an Erlang of its own.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]


class DeployedNode(Node):
    """A private node that boots with the files that `compose.yaml` mounts."""

    def __init__(self, folder: Path, secrets: Path) -> None:
        super().__init__(folder)
        self.secrets = secrets
        self.management_port = free_port()
        self.prometheus_port = free_port({self.management_port})

    @override
    def _write_files(self, info: NodeInfo, server: Server) -> None:
        super()._write_files(info, server)
        for name in ("rabbitmq.conf", "enabled_plugins"):
            shutil.copy(DEPLOY / "rabbitmq" / name, self.folder / name)
        definitions = self.secrets / "rabbitmq" / "definitions.json"
        (self.folder / "conf.d" / "90-this-machine.conf").write_text(
            f"load_definitions = {definitions}\n"
            f"listeners.tcp.default = 127.0.0.1:{info.amqp_port}\n"
            f"mqtt.listeners.tcp.default = 127.0.0.1:{info.mqtt_port}\n"
            f"management.tcp.port = {self.management_port}\n"
            "management.tcp.ip = 127.0.0.1\n"
            f"prometheus.tcp.port = {self.prometheus_port}\n"
            "prometheus.tcp.ip = 127.0.0.1\n"
            # The node's own start waits for a line in its log.
            f"log.dir = {self.folder / 'log'}\nlog.file = rabbit.log\n"
            "disk_free_limit.absolute = 50MB\n"
        )


@dataclass(frozen=True, slots=True)
class Deployed:
    """A running node and the passwords its definitions were rendered with."""

    node: DeployedNode
    passwords: dict[str, str]

    def password(self, user: str) -> str:
        return self.passwords[f"rabbitmq/{user}"]


@pytest.fixture(scope="module")
def deployed() -> Iterator[Deployed]:
    folder = Path(tempfile.mkdtemp(prefix="deployed"))
    shutil.copy(DEPLOY / ".env.example", folder / ".env")
    # In the node's folder, which is all that a RabbitMQ in a chroot sees.
    secrets = folder / "node" / "secrets"
    render.write_secrets(render.Deployment.read(folder / ".env"), secrets)
    node = DeployedNode(folder / "node", secrets)
    asyncio.run(node.start())
    yield Deployed(node, render.read_passwords(secrets / "passwords"))
    asyncio.run(node.kill())
    shutil.rmtree(folder)


async def amqp_login(node: Node, user: str, password: str) -> bool:
    url = f"amqp://{user}:{password}@127.0.0.1:{node.info.amqp_port}/"
    try:
        connection = await aio_pika.connect(url, timeout=CALL_TIMEOUT_S)
    except AMQPConnectionError:
        return False
    await connection.close()
    return True


async def until_login(node: Node, user: str, password: str, *, works: bool) -> None:
    # 4.x imports definitions in the background.
    async with asyncio.timeout(CALL_TIMEOUT_S):
        while await amqp_login(node, user, password) is not works:  # noqa: ASYNC110 - no event to wait on
            await asyncio.sleep(0.1)


async def mqtt_login(node: Node, user: str | None, password: str | None) -> bool:
    client = aiomqtt.Client(
        "127.0.0.1",
        node.info.mqtt_port,
        username=user,
        password=password,
        timeout=CALL_TIMEOUT_S,
    )
    try:
        async with client:
            return True
    except aiomqtt.MqttError:
        return False


def fetch(url: str, user: str = "", password: str = "") -> bytes:
    coded = base64.b64encode(f"{user}:{password}".encode()).decode()
    request = HttpRequest(url, headers={"Authorization": f"Basic {coded}"})
    with urlopen(request, timeout=CALL_TIMEOUT_S) as response:
        body: bytes = response.read()
        return body


async def test_an_agents_request_reaches_the_pool(deployed: Deployed) -> None:
    node = deployed.node
    worker = await aio_pika.connect(
        f"amqp://worker:{deployed.password('worker')}@127.0.0.1:{node.info.amqp_port}/",
        timeout=CALL_TIMEOUT_S,
    )
    async with worker:
        channel = await worker.channel()
        queue = await channel.get_queue("infer.fashion.norm")
        async with aiomqtt.Client(
            "127.0.0.1",
            node.info.mqtt_port,
            username="gateway-1",
            password=deployed.password("gateway-1"),
            identifier="gateway-1",
        ) as agent:
            topic = topics.requests("gateway-1", "fashion", Priority.NORM)
            await agent.publish(topic, b"a shirt", qos=1)
        # Acknowledged, so a queue has it.
        message = await queue.get(timeout=CALL_TIMEOUT_S)
        assert message is not None
        assert message.body == b"a shirt"
        await message.ack()


async def test_only_users_with_a_password_come_in(deployed: Deployed) -> None:
    node = deployed.node
    assert await mqtt_login(node, "gateway-1", deployed.password("gateway-1"))
    assert not await mqtt_login(node, None, None)
    assert not await mqtt_login(node, "gateway-1", deployed.password("worker"))
    assert not await amqp_login(node, "guest", "guest")
    assert await amqp_login(node, "fleet", deployed.password("fleet"))


async def test_operators_page_and_metrics_are_served(deployed: Deployed) -> None:
    node = deployed.node
    overview = f"http://127.0.0.1:{node.management_port}/api/overview"
    body = await asyncio.to_thread(fetch, overview, "admin", deployed.password("admin"))
    assert json.loads(body)["rabbitmq_version"] == node.info.version
    with pytest.raises(HTTPError):
        await asyncio.to_thread(fetch, overview, "guest", "guest")
    metrics = f"http://127.0.0.1:{node.prometheus_port}/metrics"
    assert b"rabbitmq_build_info" in await asyncio.to_thread(fetch, metrics)


async def test_health_check_of_compose_passes(deployed: Deployed) -> None:
    port = str(deployed.node.info.mqtt_port)
    # Fails unless it is so.
    await deployed.node.control(
        *("--quiet", "check_port_listener", port), program="rabbitmq-diagnostics"
    )
    compose = (DEPLOY / "compose.yaml").read_text()
    assert (
        '[CMD, rabbitmq-diagnostics, --quiet, check_port_listener, "1883"]' in compose
    )


async def test_loading_the_committed_definitions_lets_nobody_in(
    deployed: Deployed,
) -> None:
    node = deployed.node
    worker = deployed.password("worker")
    committed = shutil.copy(render.REFERENCE, node.folder)
    await node.control("import_definitions", committed)
    await until_login(node, "worker", worker, works=False)
    for user in ("admin", "worker", "fleet"):
        assert not await amqp_login(node, user, "")
        assert not await amqp_login(node, user, deployed.password(user))
    assert not await mqtt_login(node, "agent-1", "")
    # And this deployment's own, rendered again, let its users back in.
    await node.control(
        "import_definitions", node.secrets / "rabbitmq" / "definitions.json"
    )
    await until_login(node, "worker", worker, works=True)
