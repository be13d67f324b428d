"""The AMQP link against a real RabbitMQ."""

import asyncio
import time
from typing import Any

import aio_pika
import pytest
from typing_extensions import override
from yarl import URL

from broker import topology
from broker.amqp.browser import QueueInUse
from broker.amqp.link import AmqpLink
from broker.amqp.queues import NoSuchQueue
from broker.amqp.subscriber import CannotConsume
from broker.backoff import Backoff
from broker.link import BadUrl, LinkDown
from broker.messages import Priority
from broker.node import Node
from tests.integration.broker.links import Heard, amqp, quick, running
from tests.waiting import until

pytestmark = pytest.mark.integration


def norm_queue(model: str) -> tuple[topology.Queue, str]:
    queue = topology.request_queue(model, Priority.NORM)
    return queue, f"e1.agent-1.up.req.{model}.norm"


async def test_a_confirmed_message_is_delivered_with_all_that_was_sent(
    rabbit: Node,
) -> None:
    heard = Heard()
    queue, key = norm_queue("plain")
    async with amqp(
        rabbit.amqp_url("worker"), queues=[queue], consume={queue.name: 5}, heard=heard
    ) as link:
        before = time.monotonic()
        await link.publish(key, b"body", headers={"x-why": "test", "n": 3})
        delivery = await heard.delivery()
        assert delivery.queue == queue.name
        assert delivery.routing_key == key
        assert delivery.body == b"body"
        assert delivery.headers["x-why"] == "test"
        assert not delivery.redelivered
        assert before <= delivery.received_at <= time.monotonic()
        delivery.ack()
        delivery.ack()
    assert heard.changes == [True, False]


async def test_what_was_acknowledged_is_gone_and_the_rest_comes_again(
    rabbit: Node,
) -> None:
    first, second = Heard(), Heard()
    queue, key = norm_queue("again")
    url = rabbit.amqp_url("worker")
    consume = {"queues": [queue], "consume": {queue.name: 10}}
    async with amqp(url, heard=first, **consume) as link:
        for body in (b"0", b"1", b"2"):
            await link.publish(key, body)
        deliveries = [await first.delivery() for _ in range(3)]
        deliveries[1].ack()
        # Not yet gone for certain: an acknowledgement has no answer.
        await link.publish(key, b"3")
        deliveries.append(await first.delivery())

    async with amqp(url, heard=second, **consume) as link:
        again = [await second.delivery() for _ in range(3)]
        assert sorted(each.body for each in again) == [b"0", b"2", b"3"]
        assert all(each.redelivered for each in again)
        # The old tags mean other messages here: settling them must do nothing.
        for stale in deliveries:
            stale.ack()
            await stale.reject(requeue=False)
        assert link.up
        for each in again:
            each.ack()
    assert second.deliveries.empty()


async def test_acknowledgements_travel_together_and_all_arrive(rabbit: Node) -> None:
    heard = Heard()
    queue, key = norm_queue("together")
    url = rabbit.amqp_url("worker")
    consume = {"queues": [queue], "consume": {queue.name: 100}}
    sent = []
    async with amqp(url, heard=heard, **consume) as link:
        for number in range(60):
            await link.publish(key, str(number).encode())
        held = [await heard.delivery() for _ in range(60)]
        channel = held[0]._consumer.channel
        really_ack = channel.basic_ack

        async def counted(tag: int, **more: Any) -> None:
            sent.append(tag)
            await really_ack(tag, **more)

        channel.basic_ack = counted  # type: ignore[method-assign,assignment] # only counts
        for each in held[:25]:
            each.ack()
        await until(lambda: sent == [25])
        for each in held[26:]:
            each.ack()
        held[25].ack()
        # The link ends with acknowledgements owed, and still tells them.
    assert sent == [25, 60]

    async with amqp(url, heard=heard, **consume) as link:
        await link.publish(key, b"next")
        assert (await heard.delivery()).body == b"next"
        assert await link.depth(queue.name) == 0


async def test_a_small_prefetch_is_never_stalled(rabbit: Node) -> None:
    heard = Heard()
    queue, key = norm_queue("single-file")
    consume = {"queues": [queue], "consume": {queue.name: 1}}
    async with amqp(rabbit.amqp_url("worker"), heard=heard, **consume) as link:
        for number in range(50):
            await link.publish(key, str(number).encode())
        for number in range(50):
            delivery = await heard.delivery()
            assert delivery.body == str(number).encode()
            delivery.ack()


async def test_a_channel_that_dies_brings_its_deliveries_again(rabbit: Node) -> None:
    heard = Heard()
    queue, key = norm_queue("revived")
    async with amqp(
        rabbit.amqp_url("worker"), queues=[queue], consume={queue.name: 5}, heard=heard
    ) as link:
        await link.publish(key, b"once")
        lost = await heard.delivery()
        # An unknown tag makes the broker close the channel.
        await lost._consumer.channel.basic_ack(99)
        again = await heard.delivery()
        assert again.body == b"once"
        assert again.redelivered
        lost.ack()
        again.ack()
        await until(lambda: link.up)
    assert heard.changes == [True, False, True, False]


async def test_a_rejected_delivery_comes_again_when_it_is_requeued(
    rabbit: Node,
) -> None:
    heard = Heard()
    queue, key = norm_queue("requeued")
    async with amqp(
        rabbit.amqp_url("worker"), queues=[queue], consume={queue.name: 5}, heard=heard
    ) as link:
        await link.publish(key, b"x")
        await (await heard.delivery()).reject(requeue=True)
        again = await heard.delivery()
        assert again.redelivered
        again.ack()


async def test_a_prefetch_may_follow_the_round_trip(rabbit: Node) -> None:
    heard = Heard()
    queue, key = norm_queue("distant")
    asked: list[float] = []

    def prefetch(round_trip_s: float) -> int:
        asked.append(round_trip_s)
        return 2

    url = rabbit.amqp_url("worker")
    async with amqp(
        url, queues=[queue], consume={queue.name: prefetch}, heard=heard
    ) as link:
        for number in range(3):
            await link.publish(key, b"%d" % number)
        held = [await heard.delivery(), await heard.delivery()]
        assert await link.depth(queue.name) == 1
        for each in held:
            each.ack()
        (await heard.delivery()).ack()
    assert len(asked) == 1
    assert 0.0 < asked[0] < 5.0


async def test_a_queue_that_is_deleted_is_declared_and_consumed_again(
    rabbit: Node,
) -> None:
    heard = Heard()
    queue, key = norm_queue("deleted")
    async with amqp(
        rabbit.amqp_url("worker"), queues=[queue], consume={queue.name: 5}, heard=heard
    ) as link:
        async with await aio_pika.connect(rabbit.amqp_url("admin")) as admin:
            channel = await admin.channel()
            await channel.queue_delete(queue.name)
        await until(lambda: len(heard.changes) >= 3)
        await link.publish(key, b"after")
        delivery = await heard.delivery()
        assert delivery.body == b"after"
        delivery.ack()


async def test_each_queue_has_its_own_prefetch(rabbit: Node) -> None:
    heard = Heard()
    one, key = norm_queue("narrow")
    other, other_key = norm_queue("wide")
    async with amqp(
        rabbit.amqp_url("worker"),
        queues=[one, other],
        consume={one.name: 2, other.name: 4},
        heard=heard,
    ) as link:
        for _ in range(6):
            await link.publish(key, b"")
            await link.publish(other_key, b"")
        held = [await heard.delivery() for _ in range(6)]
        assert sorted(each.queue for each in held) == [one.name] * 2 + [other.name] * 4
        assert await link.depth(one.name) == 4
        assert await link.depth(other.name) == 2
        for each in held:
            each.ack()
        for _ in range(6):
            (await heard.delivery()).ack()


async def test_after_stop_consuming_what_is_held_can_still_be_settled(
    rabbit: Node,
) -> None:
    heard = Heard()
    queue, key = norm_queue("drained")
    url = rabbit.amqp_url("worker")
    async with amqp(url, queues=[queue], consume={queue.name: 5}, heard=heard) as link:
        await link.publish(key, b"held")
        held = await heard.delivery()
        await link.stop_consuming()
        await link.publish(key, b"left")
        held.ack()
        assert await link.depth(queue.name) == 1
        assert heard.deliveries.empty()
    heard = Heard()
    async with amqp(url, queues=[queue], consume={queue.name: 5}, heard=heard):
        left = await heard.delivery()
        assert left.body == b"left"
        left.ack()


async def test_a_queue_that_is_added_is_consumed_and_still_is_after_a_reconnect(
    rabbit: Node,
) -> None:
    heard = Heard()
    first, first_key = norm_queue("there-first")
    later, later_key = norm_queue("comes-later")
    async with amqp(
        rabbit.amqp_url("worker"), queues=[first], consume={first.name: 5}, heard=heard
    ) as link:
        await link.consume_also([later], 1)
        await link.publish(later_key, b"new")
        new = await heard.delivery()
        assert (new.queue, new.body) == (later.name, b"new")
        await link.publish(first_key, b"old")
        assert (await heard.delivery()).body == b"old"
        assert heard.changes == [True]
        # The prefetch is that of the call, and a later call changes it.
        await link.publish(later_key, b"second")
        assert await link.depth(later.name) == 1
        await link.consume_also([later], 2)
        second = await heard.delivery()
        assert second.body == b"second"
        # A channel that dies, this one, too, takes the link with it.
        await second._consumer.channel.basic_ack(99)
        await until(lambda: heard.changes == [True, False, True])
        again = {(await heard.delivery()).body for _ in range(3)}
        assert again == {b"new", b"second", b"old"}


async def test_a_queue_is_stopped_and_consumed_again_while_others_go_on(
    rabbit: Node,
) -> None:
    heard = Heard()
    one, one_key = norm_queue("goes-on")
    other, other_key = norm_queue("pauses")
    async with amqp(
        rabbit.amqp_url("worker"),
        queues=[one, other],
        consume={one.name: 5, other.name: 5},
        heard=heard,
    ) as link:
        await link.publish(other_key, b"held")
        held = await heard.delivery()
        await link.stop_consuming([other.name])
        await link.publish(other_key, b"stays")
        await link.publish(one_key, b"comes")
        comes = await heard.delivery()
        assert comes.body == b"comes"
        held.ack()
        assert await link.depth(other.name) == 1
        # Nor is it consumed by the next connection.
        await comes._consumer.channel.basic_ack(99)
        await until(lambda: heard.changes == [True, False, True])
        assert (await heard.delivery()).body == b"comes"
        assert await link.depth(other.name) == 1
        await link.consume_also([other], 5)
        stayed = await heard.delivery()
        assert stayed.body == b"stays"
        stayed.ack()


async def test_an_added_queue_that_is_refused_costs_the_others_nothing(
    rabbit: Node,
) -> None:
    heard = Heard()
    good, good_key = norm_queue("accepted")
    odd, odd_key = norm_queue("odd-later")
    foreign = topology.Queue("mqtt-subscription-agent-1qos1", "amq.topic", "e1.#")
    async with (
        await aio_pika.connect(rabbit.amqp_url("admin")) as admin,
        amqp(
            rabbit.amqp_url("worker"),
            queues=[good],
            consume={good.name: 5},
            heard=heard,
        ) as link,
    ):
        channel = await admin.channel()
        await channel.declare_queue(odd.name, durable=True)
        with pytest.raises(CannotConsume, match=r"odd-later.*delete it"):
            await link.consume_also([odd], 5)
        with pytest.raises(CannotConsume, match="may not declare"):
            await link.consume_also([foreign], 5)
        await link.publish(good_key, b"fine")
        fine = await heard.delivery()
        assert fine.body == b"fine"
        await fine._consumer.channel.basic_ack(99)
        await until(lambda: heard.changes == [True, False, True])
        await channel.queue_delete(odd.name)
        await link.consume_also([odd], 5)
        assert (await heard.delivery()).body == b"fine"
        await link.publish(odd_key, b"at last")
        assert (await heard.delivery()).body == b"at last"


async def test_an_added_queue_that_is_refused_at_a_connect_keeps_no_other_away(
    rabbit: Node,
) -> None:
    heard = Heard()
    good, good_key = norm_queue("good-beside")
    odd, odd_key = norm_queue("odd-at-start")
    async with await aio_pika.connect(rabbit.amqp_url("admin")) as admin:
        channel = await admin.channel()
        await channel.declare_queue(odd.name, durable=True)
        link = AmqpLink(
            rabbit.amqp_url("worker"),
            name="test",
            on_delivery=heard.on_delivery,
            on_change=heard.on_change,
            backoff=quick(),
        )
        await link.consume_also([odd], 5)
        await link.consume_also([good], 5)
        async with running(link.run):
            await link.wait_up()
            await link.publish(good_key, b"fine")
            fine = await heard.delivery()
            assert fine.body == b"fine"
            await channel.queue_delete(odd.name)
            await link.consume_also([odd], 5)
            await link.publish(odd_key, b"at last")
            assert (await heard.delivery()).body == b"at last"


async def test_a_queue_that_is_added_without_a_connection_comes_with_it(
    rabbit: Node,
) -> None:
    heard = Heard()
    queue, key = norm_queue("foreseen")
    link = AmqpLink(
        rabbit.amqp_url("worker"),
        name="test",
        on_delivery=heard.on_delivery,
        backoff=quick(),
    )
    await link.consume_also([queue], 5)
    async with running(link.run):
        await link.wait_up()
        await link.publish(key, b"there")
        assert (await heard.delivery()).body == b"there"


async def test_the_depth_of_a_queue_that_is_not_there_is_no_number(
    rabbit: Node,
) -> None:
    async with amqp(
        rabbit.amqp_url("worker"), queues=topology.standing_queues()
    ) as link:
        with pytest.raises(NoSuchQueue, match=r"infer\.nowhere\.norm"):
            await link.depth("infer.nowhere.norm")
        assert await link.depth(topology.GET_QUEUE) >= 0
        assert link.up


async def test_a_queue_with_other_arguments_is_named_and_not_hammered(
    rabbit: Node,
) -> None:
    queue, _ = norm_queue("odd")
    async with await aio_pika.connect(rabbit.amqp_url("admin")) as admin:
        channel = await admin.channel()
        await channel.declare_queue(queue.name, durable=True)
        tries: list[float] = []

        class Counting(Backoff):
            @override
            def next_s(self) -> float:
                tries.append(time.monotonic())
                return 0.5

        link = AmqpLink(
            rabbit.amqp_url("worker"), name="test", queues=[queue], backoff=Counting()
        )
        async with running(link.run):
            await until(lambda: len(tries) >= 2)
            assert not link.up
            assert repr(queue.name) in str(link.last_error)
            assert "delete it" in str(link.last_error)
            await channel.queue_delete(queue.name)
            await until(lambda: link.up)
            assert link.last_error is None
        assert len(tries) < 10


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({"password": "wrong"}, "password", id="wrong password"),
        pytest.param({"user": "guest", "password": "guest"}, "password", id="guest"),
        pytest.param({"path": "/nowhere"}, "nowhere", id="unknown vhost"),
        pytest.param({"port": 1}, "nothing listens", id="nothing there"),
        pytest.param({"host": "no-such-host.invalid"}, "host name", id="no address"),
    ],
)
async def test_what_keeps_the_link_down_is_said_and_tried_again(
    rabbit: Node, change: dict[str, Any], words: str
) -> None:
    url = URL(rabbit.amqp_url("worker"))
    for part, value in change.items():
        url = getattr(url, f"with_{part}")(value)
    link = AmqpLink(str(url), name="test", backoff=quick())
    async with running(link.run):
        await until(lambda: link.last_error)
        assert words in str(link.last_error)
        assert rabbit.info.passwords["worker"] not in str(link.last_error)
        with pytest.raises(LinkDown):
            await link.publish("e1.a.dn.res", b"", timeout_s=30)
        with pytest.raises(LinkDown):
            await link.depth("x")


async def test_a_worker_may_not_declare_what_is_not_its_own(rabbit: Node) -> None:
    queue = topology.Queue("mqtt-subscription-agent-1qos1", "amq.topic", "e1.agent-1.#")
    link = AmqpLink(
        rabbit.amqp_url("worker"), name="test", queues=[queue], backoff=quick()
    )
    async with running(link.run):
        await until(lambda: link.last_error)
        assert "may not declare" in str(link.last_error)


async def test_a_handler_that_fails_costs_only_its_own_delivery(rabbit: Node) -> None:
    heard = Heard()
    queue, key = norm_queue("failing")

    async def fail_first(delivery: Any) -> None:
        if delivery.body == b"bad" and not delivery.redelivered:
            raise RuntimeError("a handler's own fault")
        await heard.on_delivery(delivery)

    link = AmqpLink(
        rabbit.amqp_url("worker"),
        name="test",
        queues=[queue],
        consume={queue.name: 5},
        on_delivery=fail_first,
        backoff=quick(),
    )
    async with running(link.run):
        await link.wait_up()
        await link.publish(key, b"bad")
        await link.publish(key, b"good")
        assert (await heard.delivery()).body == b"good"
        assert link.up


async def test_many_publishes_at_once_are_all_confirmed(rabbit: Node) -> None:
    heard = Heard()
    queue, key = norm_queue("many")
    async with amqp(
        rabbit.amqp_url("worker"), queues=[queue], consume={queue.name: 50}, heard=heard
    ) as link:
        async with asyncio.TaskGroup() as publishes:
            for number in range(300):
                publishes.create_task(link.publish(key, number.to_bytes(2, "big")))
        seen = set()
        for _ in range(300):
            delivery = await heard.delivery()
            seen.add(delivery.body)
            delivery.ack()
        assert len(seen) == 300


@pytest.mark.parametrize(
    "url", ["", "http://h", "amqp://", "mqtt://h", "amqp://u:secret@"]
)
def test_a_url_that_names_no_broker_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(BadUrl) as refusal:
        AmqpLink(url, name="test")
    assert "secret" not in str(refusal.value)


async def test_a_binding_that_was_deleted_is_made_again(rabbit: Node) -> None:
    heard = Heard()
    queue, key = norm_queue("unbound")
    consume = {"queues": [queue], "consume": {queue.name: 5}}
    async with amqp(rabbit.amqp_url("worker"), heard=heard, **consume) as link:
        async with await aio_pika.connect(rabbit.amqp_url("admin")) as admin:
            channel = await admin.channel()
            found = await channel.get_queue(queue.name, ensure=False)
            await found.unbind(queue.exchange, queue.routing_key)
        asked_s = time.monotonic()
        assert await link.restore(asked_s)
        await link.publish(key, b"bound")
        (delivery := await heard.delivery()).ack()
        assert delivery.body == b"bound"
        assert heard.changes == [True]
        assert await link.restore(asked_s)


async def test_a_link_connects_anew_for_a_queue_that_was_deleted(
    rabbit: Node,
) -> None:
    heard = Heard()
    queue, key = norm_queue("deleted")
    async with amqp(rabbit.amqp_url("worker"), heard=heard, queues=[queue]) as link:
        async with await aio_pika.connect(rabbit.amqp_url("admin")) as admin:
            await (await admin.channel()).queue_delete(queue.name)
        assert not await link.restore(time.monotonic())
        await until(lambda: heard.changes == [True, False, True])
        await link.publish(key, b"there")
        assert await link.depth(queue.name) == 1
        async with await aio_pika.connect(rabbit.amqp_url("admin")) as admin:
            await (await admin.channel()).queue_delete(queue.name)


async def test_without_a_link_nothing_is_restored(free_port: int) -> None:
    link = AmqpLink(f"amqp://127.0.0.1:{free_port}", name="test")
    assert not await link.restore(time.monotonic())


async def test_browsing_loses_nothing_and_changes_no_order(rabbit: Node) -> None:
    heard = Heard()
    queue, key = norm_queue("browsed")
    url = rabbit.amqp_url("worker")
    async with amqp(url, queues=[queue]) as link:
        for number in range(5):
            await link.publish(key, bytes([number]), headers={"n": number})
        async with link.browse(queue.name) as browser:
            assert browser.count == 5
            seen = []
            while (delivery := await browser.next()) is not None:
                seen.append((delivery.body, delivery.headers["n"]))
                if delivery.body == b"\x02":
                    await browser.remove(delivery)
            assert seen == [(bytes([number]), number) for number in range(5)]
        async with link.browse(queue.name) as browser:
            assert browser.count == 4
    async with amqp(url, consume={queue.name: 10}, heard=heard):
        left = [(await heard.delivery()).body for _ in range(4)]
        assert left == [b"\x00", b"\x01", b"\x03", b"\x04"]


async def test_a_queue_is_browsed_by_one_at_a_time(rabbit: Node) -> None:
    queue, _ = norm_queue("browsed-by-two")
    async with amqp(rabbit.amqp_url("worker"), queues=[queue]) as one:
        async with (
            amqp(rabbit.amqp_url("fleet")) as other,
            one.browse(queue.name),
        ):
            with pytest.raises(QueueInUse, match=queue.name):
                async with other.browse(queue.name):
                    pass
        async with amqp(rabbit.amqp_url("fleet")) as other, other.browse(queue.name):
            pass


async def test_a_queue_that_is_not_there_cannot_be_browsed(rabbit: Node) -> None:
    async with amqp(rabbit.amqp_url("fleet")) as link:
        with pytest.raises(NoSuchQueue, match=r"infer\.nobody\.norm"):
            async with link.browse("infer.nobody.norm"):
                pass
