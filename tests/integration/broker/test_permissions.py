"""What the definitions let each user do, on a real RabbitMQ."""

import asyncio

import pytest

from broker import codec, topics, topology
from broker.link import LinkDown
from broker.messages import Command, Priority, Result, Status
from broker.mqtt.link import MqttLink
from broker.mqtt.target import MqttTarget
from broker.node import Node
from tests.integration.broker.links import Heard, amqp, mqtt, quick, running
from tests.waiting import until

pytestmark = pytest.mark.integration


async def test_the_definitions_are_loaded_at_boot(rabbit: Node) -> None:
    names = {queue.name for queue in topology.standing_queues()}

    assert names <= set(await rabbit.queues())


async def test_a_request_reaches_the_queue_of_its_model_and_class(rabbit: Node) -> None:
    heard = Heard()
    queues = topology.model_queues("routed")
    consume = {queue.name: 10 for queue in queues}
    async with (
        amqp(rabbit.amqp_url("worker"), queues=queues, consume=consume, heard=heard),
        mqtt(rabbit.mqtt_url("wire-1"), "wire-1") as agent,
    ):
        for priority in Priority:
            await agent.publish(
                topics.requests("wire-1", "routed", priority), priority.encode()
            )
            delivery = await heard.delivery()
            assert delivery.queue == f"infer.routed.{priority.value}"
            assert delivery.body == priority.encode()
            assert topics.read_request_key(delivery.routing_key) == (
                topics.RequestAddress("wire-1", "routed", priority)
            )
            delivery.ack()


async def test_a_request_that_no_queue_takes_lands_in_unrouted(rabbit: Node) -> None:
    heard = Heard()
    topic = topics.requests("wire-1", "nobody-serves-this", Priority.NORM)
    async with (
        amqp(
            rabbit.amqp_url("worker"),
            queues=topology.standing_queues(),
            consume={topology.UNROUTED_QUEUE: 1},
            heard=heard,
        ),
        mqtt(rabbit.mqtt_url("wire-1"), "wire-1") as agent,
    ):
        await agent.publish(topic, b"lost?")
        # Other tests publish what nobody takes as well.
        while (delivery := await heard.delivery()).body != b"lost?":
            delivery.ack()
        assert delivery.routing_key == topics.as_routing_key(topic)
        delivery.ack()


async def test_a_rejected_request_lands_among_the_dead_with_its_key(
    rabbit: Node,
) -> None:
    heard = Heard()
    queues = [*topology.model_queues("dying"), *topology.standing_queues()]
    consume = {"infer.dying.norm": 1, topology.UNANSWERED_QUEUE: 1}
    async with (
        amqp(rabbit.amqp_url("worker"), queues=queues, consume=consume, heard=heard),
        mqtt(rabbit.mqtt_url("wire-1"), "wire-1") as agent,
    ):
        await agent.publish(topics.requests("wire-1", "dying", Priority.NORM), b"x")
        await (await heard.delivery()).reject(requeue=False)
        dead = await heard.delivery()
        assert dead.queue == topology.UNANSWERED_QUEUE
        assert dead.routing_key == "e1.wire-1.up.req.dying.norm"
        dead.ack()
    async with (
        amqp(rabbit.amqp_url("fleet")) as operator,
        operator.browse(topology.DEAD_QUEUE) as browser,
    ):
        # For the operators too, behind what other tests left there.
        keys = set()
        while (kept := await browser.next()) is not None:
            keys.add(kept.routing_key)
        assert "e1.wire-1.up.req.dying.norm" in keys


async def test_results_reach_the_agent_they_are_for_and_no_other(rabbit: Node) -> None:
    one, other = Heard(), Heard()
    result = Result(id="r1", device="d1", model="m", status=Status.OK)
    async with (
        mqtt(rabbit.mqtt_url("wire-1"), "wire-1", topics.downlink("wire-1"), heard=one),
        mqtt(
            rabbit.mqtt_url("wire-2"),
            "wire-2",
            topics.downlink("wire-2"),
            heard=other,
        ),
        amqp(rabbit.amqp_url("worker")) as worker,
    ):
        await worker.publish("e1.wire-1.dn.res", codec.encode(result))
        topic, payload = await one.message()
        await worker.publish("e1.wire-2.dn.res", b"after")

        assert (await other.message())[1] == b"after"
        assert topic == topics.results("wire-1")
        assert codec.decode(payload, Result).items == (result,)


async def test_results_wait_for_an_agent_that_is_away(rabbit: Node) -> None:
    heard = Heard()
    url, topic = rabbit.mqtt_url("wire-3"), topics.downlink("wire-3")
    async with mqtt(url, "wire-3", topic):
        pass
    async with amqp(rabbit.amqp_url("worker")) as worker:
        for number in range(50):
            await worker.publish("e1.wire-3.dn.res", bytes([number]))

    async with mqtt(url, "wire-3", topic, heard=heard):
        got = [(await heard.message())[1] for _ in range(50)]
    assert got == [bytes([number]) for number in range(50)]


async def test_a_worker_may_write_dead_letters(rabbit: Node) -> None:
    async with amqp(rabbit.amqp_url("worker")) as worker:
        key = "e1.wire-1.up.req.poisoned.norm"
        await worker.publish(key, b"x", exchange=topology.DEAD_EXCHANGE)


async def test_the_fleet_may_hint_and_send_requests_again_but_not_report(
    rabbit: Node,
) -> None:
    heard = Heard()
    topic = topics.downlink("wire-2")
    async with (
        mqtt(rabbit.mqtt_url("wire-2"), "wire-2", topic, heard=heard),
        amqp(rabbit.amqp_url("fleet")) as fleet,
    ):
        hint = codec.encode(Command(action="desired_changed"))
        await fleet.publish("e1.wire-2.dn.cmd", hint)
        assert await heard.message() == (topics.commands("wire-2"), hint)
        await fleet.publish("e1.wire-2.up.req.retried.norm", b"x", timeout_s=10)
        with pytest.raises(LinkDown):
            await fleet.publish("e1.wire-2.up.tel", b"x", timeout_s=10)


@pytest.mark.parametrize(
    "topic",
    [
        pytest.param("e1/wire-2/up/get", id="as another agent"),
        pytest.param("e1/wire-1/dn/res", id="as the pool"),
        pytest.param("infer/x/y", id="outside the wire"),
    ],
)
async def test_an_agent_cannot_publish_but_under_its_own_name(
    rabbit: Node, topic: str
) -> None:
    heard = Heard()
    async with (
        amqp(
            rabbit.amqp_url("worker"),
            queues=topology.standing_queues(),
            consume={topology.GET_QUEUE: 10, topology.UNROUTED_QUEUE: 10},
            heard=heard,
        ),
        mqtt(rabbit.mqtt_url("wire-1"), "wire-1") as agent,
    ):
        with pytest.raises(LinkDown):
            await agent.publish(topic, b"forged")
        await agent.wait_up()
        await agent.publish("e1/wire-1/up/get", b"honest")
        bodies: list[bytes] = []
        while b"honest" not in bodies:
            delivery = await heard.delivery()
            bodies.append(delivery.body)
            delivery.ack()
        assert b"forged" not in bodies


async def test_an_agent_cannot_take_another_name_with_dots_inside_a_level(
    rabbit: Node,
) -> None:
    heard = Heard()
    async with (
        amqp(
            rabbit.amqp_url("worker"),
            queues=topology.standing_queues(),
            consume={topology.GET_QUEUE: 10},
            heard=heard,
        ),
        mqtt(rabbit.mqtt_url("wire-1"), "wire-1") as agent,
    ):
        # RabbitMQ 3.10 routes a dot as it routes a slash, 4.x the other way round.
        for topic in ("e1/wire-1.up.wire-2/up/get", "e1/wire-1.up/get"):
            await agent.publish(topic, b"forged")
        await agent.publish("e1/wire-1/up/get", b"honest")
        delivery = await heard.delivery()
        while delivery.body != b"honest":
            assert topics.read_agent(delivery.routing_key) in {"wire-1", None}
            delivery.ack()
            delivery = await heard.delivery()
        delivery.ack()


@pytest.mark.parametrize(
    "topic", ["e1/wire-2/dn/#", "e1/+/dn/res", "#", "e1/wire-1/up/#"]
)
async def test_an_agent_cannot_listen_to_what_is_not_its_own(
    rabbit: Node, topic: str
) -> None:
    heard = Heard()
    link = MqttLink(
        MqttTarget.from_url(rabbit.mqtt_url("wire-1")),
        client_id="wire-1",
        subscriptions=[topic],
        on_message=heard.on_message,
        on_change=heard.on_change,
        persistent=False,
        backoff=quick(),
    )
    async with running(link.run), amqp(rabbit.amqp_url("worker")) as worker:
        await until(lambda: link.last_error)
        await worker.publish("e1.wire-2.dn.res", b"secret")

        assert link.last_error is not None
        assert repr(topic) in link.last_error
        assert "permission" in link.last_error
        assert heard.changes == []
    assert heard.messages.empty()


async def test_an_agent_cannot_read_the_session_of_another(rabbit: Node) -> None:
    thief, owner = Heard(), Heard()
    url, topic = rabbit.mqtt_url("wire-4"), topics.downlink("wire-4")
    async with mqtt(url, "wire-4", topic):
        pass
    async with amqp(rabbit.amqp_url("worker")) as worker:
        await worker.publish("e1.wire-4.dn.res", b"private")
    link = MqttLink(
        MqttTarget.from_url(rabbit.mqtt_url("wire-1")),
        client_id="wire-4",
        subscriptions=[topics.downlink("wire-1")],
        on_message=thief.on_message,
        backoff=quick(),
    )
    async with running(link.run):
        await until(lambda: link.last_error)

    async with mqtt(url, "wire-4", topic, heard=owner):
        assert (await owner.message())[1] == b"private"
    assert thief.messages.empty()


@pytest.mark.parametrize(
    ("username", "password"),
    [("wire-1", "wrong"), ("nobody", "x"), ("guest", "guest"), (None, None)],
)
async def test_strangers_are_refused_and_told_to_check_their_credentials(
    rabbit: Node, username: str | None, password: str | None
) -> None:
    target = MqttTarget("127.0.0.1", rabbit.info.mqtt_port, username, password)
    link = MqttLink(
        target, client_id="stranger", on_message=Heard().on_message, backoff=quick()
    )
    async with running(link.run):
        await until(lambda: link.last_error)
        await asyncio.sleep(0)
        assert not link.up
        assert link.last_error is not None
        assert "password" in link.last_error
        assert repr(username) in link.last_error
        if password is not None:
            assert "wrong" not in link.last_error
