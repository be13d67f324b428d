"""The private RabbitMQ itself, and links that outlive it."""

import asyncio
import os
import signal
import socket
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from broker import topology
from broker.amqp.link import AmqpLink
from broker.link import LinkDown, PublishTimeout
from broker.mqtt.link import MqttLink
from broker.mqtt.target import MqttTarget
from broker.node import Node, NodeError, PortTaken
from broker.node_info import plan, read_info
from broker.ports import is_free
from broker.process import alive
from broker.topics import BadId
from tests.integration.broker.links import Heard, quick, running, within
from tests.waiting import until

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(240),  # starts a RabbitMQ or two on a busy machine
]

LISTENING = "0A"


def listeners(ports: set[int]) -> dict[int, set[str]]:
    """For each port that is listened on, the addresses, as the kernel tells them."""
    found: dict[int, set[str]] = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            address, _, port = local.partition(":")
            if state == LISTENING and int(port, 16) in ports:
                found.setdefault(int(port, 16), set()).add(address)
    return found


LOOPBACK = {"0100007F", "00000000000000000000000001000000"}


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


async def test_two_nodes_run_side_by_side_on_loopback_only_and_leave_nothing(
    short_tmp: Path,
) -> None:
    one, other = Node(short_tmp / "one"), Node(short_tmp / "two", vhost="tenant")
    async with asyncio.TaskGroup() as starts:
        starts.create_task(one.start())
        starts.create_task(other.start())
    pids = [one.info.pid, one.info.epmd_pid, other.info.pid, other.info.epmd_pid]
    ports = {*one.info.ports.values(), *other.info.ports.values()}
    try:
        assert len(ports) == 8
        listening = listeners(ports)
        assert set(listening) == ports
        assert all(addresses <= LOOPBACK for addresses in listening.values())
        assert one.info.version == other.info.version
        assert (await other.start()) == other.info
        heard = Heard()
        link = MqttLink(
            MqttTarget.from_url(other.mqtt_url("agent-1")),
            client_id="agent-1",
            subscriptions=["e1/agent-1/dn/#"],
            on_message=heard.on_message,
        )
        worker = AmqpLink(other.amqp_url("worker"), name="test")
        async with running(link.run), running(worker.run):
            await within(link.wait_up())
            await within(worker.wait_up())
            await worker.publish("e1.agent-1.dn.res", b"in the tenant's vhost")
            assert (await heard.message())[1] == b"in the tenant's vhost"
    finally:
        await one.stop()
        await other.stop()
    assert all(pid is not None and is_gone(pid) for pid in pids)
    assert listeners(ports) == {}
    assert not Node.load(short_tmp / "one").info.running


async def test_links_outlive_a_broker_that_is_absent_stopped_and_killed(
    short_tmp: Path,
) -> None:
    node = Node(short_tmp / "node")
    node._save(plan(node._wish, None))
    heard = Heard()
    queue = topology.model_queues("m")[1]
    agent = MqttLink(
        MqttTarget.from_url(node.mqtt_url("agent-1")),
        client_id="agent-1",
        subscriptions=["e1/agent-1/dn/#"],
        on_message=heard.on_message,
        backoff=quick(),
    )
    worker = AmqpLink(
        node.amqp_url("worker"),
        name="test",
        queues=[queue],
        consume={queue.name: 5},
        on_delivery=heard.on_delivery,
        backoff=quick(),
    )

    async def taken(body: bytes) -> None:
        # A killed broker forgets acknowledgements: what it brings again is passed by.
        while (delivery := await heard.delivery()).body != body:
            delivery.ack()
        delivery.ack()

    async def echo(body: bytes) -> None:
        await agent.publish("e1/agent-1/up/req/m/norm", body)
        await taken(body)
        await worker.publish("e1.agent-1.dn.res", body)
        while (await heard.message())[1] != body:
            pass

    async with running(agent.run), running(worker.run):
        await until(lambda: agent.last_error and worker.last_error)
        await node.start()
        try:
            await within(agent.wait_up(), 60)
            await within(worker.wait_up(), 60)
            await echo(b"appeared")

            info = await node.restart()
            assert info.ports == node.info.ports
            await until(lambda: agent.up and worker.up, 60)
            await echo(b"restarted")

            await worker.publish("e1.agent-1.up.req.m.norm", b"durable")
            await heard.delivery()
            await node.kill()
            await until(lambda: not agent.up and not worker.up)
            with pytest.raises(LinkDown):
                await agent.publish("e1/agent-1/up/get", b"", timeout_s=30)
            with pytest.raises(LinkDown):
                await worker.publish("e1.agent-1.dn.res", b"", timeout_s=30)
            await node.start()
            await taken(b"durable")
            await until(lambda: agent.up and worker.up, 60)
            await echo(b"risen")
        finally:
            await node.stop()


async def test_a_broker_that_stands_still_makes_publishes_time_out(
    rabbit: Node,
) -> None:
    agent = MqttLink(
        MqttTarget.from_url(rabbit.mqtt_url("agent-1")),
        client_id="agent-1",
        on_message=Heard().on_message,
    )
    worker = AmqpLink(rabbit.amqp_url("worker"), name="test")
    assert rabbit.info.pid is not None
    async with running(agent.run), running(worker.run):
        await within(agent.wait_up())
        await within(worker.wait_up())
        os.kill(rabbit.info.pid, signal.SIGSTOP)
        try:
            with pytest.raises(PublishTimeout):
                await agent.publish("e1/agent-1/up/get", b"", timeout_s=0.5)
            with pytest.raises(PublishTimeout):
                await worker.publish("e1.agent-1.dn.res", b"", timeout_s=0.5)
        finally:
            os.kill(rabbit.info.pid, signal.SIGCONT)
        await until(lambda: agent.up and worker.up)
        await worker.publish("e1.agent-1.dn.res", b"")


async def test_a_port_in_use_is_named_and_nothing_is_started(short_tmp: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        node = Node(short_tmp / "node", amqp_port=port)
        with pytest.raises(PortTaken, match=f"port {port}"):
            await node.start()
    assert is_free(port)
    assert not (short_tmp / "node" / "log" / "rabbit.log").exists()


async def test_a_node_that_cannot_start_says_what_its_log_says(short_tmp: Path) -> None:
    folder = short_tmp / "node"
    node = Node(folder)
    (folder / "conf.d").mkdir(parents=True)
    (folder / "conf.d" / "bad.conf").write_text("no.such.key = 1\n")
    with pytest.raises(NodeError) as failure:
        await node.start(timeout_s=60)
    assert "no.such.key" in str(failure.value)
    ports = Node.load(folder).info.ports.values()
    assert listeners(set(ports)) == {}


async def test_a_start_that_takes_too_long_leaves_nothing(short_tmp: Path) -> None:
    node = Node(short_tmp / "node")
    with pytest.raises(NodeError, match=r"not up within 1 s"):
        await node.start(timeout_s=1)

    assert listeners(set(node.info.ports.values())) == {}
    assert not node.info.processes


async def test_a_start_that_is_interrupted_twice_leaves_nothing(
    short_tmp: Path,
) -> None:
    node = Node(short_tmp / "node")
    async with asyncio.TaskGroup() as beside:
        start = beside.create_task(node.start())
        await until((short_tmp / "node" / "log" / "start.log").exists)
        await asyncio.sleep(0.5)
        start.cancel()
        await asyncio.sleep(0)
        start.cancel()

    saved = read_info(short_tmp / "node")
    assert saved is not None
    await until(lambda: not any(alive(pid) for pid in saved.processes))
    assert listeners(set(saved.ports.values())) == {}


async def test_only_the_owner_can_read_the_credentials(short_tmp: Path) -> None:
    node = Node(short_tmp / "node", agents=["cam-1"])
    info = plan(node._wish, None)
    node._save(info)

    assert set(info.passwords) == {"admin", "worker", "fleet", "cam-1"}
    assert len(set(info.passwords.values())) == 4
    mode = stat.S_IMODE((short_tmp / "node" / "node.json").stat().st_mode)
    assert mode == 0o600
    assert not any(password in repr(info) for password in info.passwords.values())
    assert Node.load(short_tmp / "node").info == info


async def test_a_process_id_that_was_used_again_is_not_taken_for_the_node(
    short_tmp: Path,
) -> None:
    node = Node(short_tmp / "node")
    info = plan(node._wish, None)
    node._save(replace(info, pid=os.getpid(), births={"node": "1"}))

    assert not Node.load(short_tmp / "node").info.running
    await node.stop()


async def test_an_agent_whose_name_would_change_the_routing_is_refused(
    short_tmp: Path,
) -> None:
    with pytest.raises(BadId):
        await Node(short_tmp / "node", agents=["a.b"]).start()
