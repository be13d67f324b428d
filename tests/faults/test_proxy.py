"""The bad roads themselves, and links that notice that theirs is dead."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import pytest

from broker.amqp.link import AmqpLink
from broker.link import LinkDown
from broker.mqtt.link import MqttLink
from broker.mqtt.target import MqttTarget
from broker.node import Node
from tests.faults.lossy_link import FAR, NEAR, LossyLink, why_not
from tests.faults.proxy import DEAD, GOOD, LOOPBACK, Proxy, Road
from tests.integration.broker.links import Heard, amqp, mqtt, quick, running
from tests.waiting import until

pytestmark = pytest.mark.integration

KEEPALIVE_S = 2


@asynccontextmanager
async def echo() -> AsyncIterator[int]:
    """A server that says all that it hears, and its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while heard := await reader.read(65536):
                writer.write(heard)
        except ConnectionError:
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(serve, LOOPBACK, 0) as server:
        yield server.sockets[0].getsockname()[1]
        await asyncio.sleep(0)


class Client:
    """A connection through a proxy to an echo."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.reader = reader
        self.writer = writer

    async def hears(self, text: bytes, within_s: float = 5.0) -> bool:
        """Whether it hears this next, and in time."""
        try:
            async with asyncio.timeout(within_s):
                return await self.reader.readexactly(len(text)) == text
        except TimeoutError:
            return False


@asynccontextmanager
async def through(proxy: Proxy, host: str = LOOPBACK) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection(host, proxy.port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


async def test_a_good_road_carries_everything_and_then_the_end() -> None:
    async with echo() as port, Proxy(port) as proxy, through(proxy) as client:
        client.writer.write(b"x" * 300_000)
        assert await client.hears(b"x" * 300_000)
        client.writer.write_eof()
        assert await client.reader.read() == b""
        await until(lambda: proxy.connections == 0)
        assert proxy.accepted == 1


@pytest.mark.parametrize("bad", [DEAD, Road(up=False), Road(down=False)])
async def test_a_cut_road_keeps_back_what_arrives_when_it_heals(bad: Road) -> None:
    async with echo() as port, Proxy(port) as proxy, through(proxy) as client:
        client.writer.write(b"before")
        assert await client.hears(b"before")
        proxy.make(bad)
        client.writer.write(b"kept")
        assert not await client.hears(b"kept", within_s=0.3)
        assert proxy.connections == 1
        proxy.make(GOOD)
        assert await client.hears(b"kept")


async def test_a_half_open_connection_stays_dead_while_others_come() -> None:
    async with echo() as port, Proxy(port) as proxy, through(proxy) as old:
        old.writer.write(b"a")
        assert await old.hears(b"a")
        proxy.make(DEAD, coming=False)
        async with through(proxy) as later:
            later.writer.write(b"b")
            assert await later.hears(b"b")
        old.writer.write(b"c")
        assert not await old.hears(b"c", within_s=0.2)
        assert not old.reader.at_eof()


async def test_a_slow_road_delays_each_way() -> None:
    async with echo() as port, Proxy(port) as proxy:
        proxy.make(Road(delay_s=0.2, bytes_per_s=100_000))
        async with through(proxy) as client:
            began = time.monotonic()
            client.writer.write(b"x" * 10_000)
            assert await client.hears(b"x" * 10_000)
            # Twice the delay and twice 10,000 bytes at 100,000 a second.
            assert time.monotonic() - began >= 0.6


async def test_a_reset_is_an_error_at_the_client() -> None:
    async with echo() as port, Proxy(port) as proxy, through(proxy) as client:
        client.writer.write(b"a")
        assert await client.hears(b"a")
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            await client.reader.read()


@pytest.mark.skipif(why_not() is not None, reason=f"no lossy link: {why_not()}")
async def test_packets_that_are_really_lost_are_mended_by_tcp() -> None:
    async with (
        LossyLink(loss=0.1) as link,
        echo() as port,
        Proxy(port, listen_host=NEAR) as proxy,
        through(proxy, FAR) as client,
    ):
        client.writer.write(b"x" * 200_000)
        assert await client.hears(b"x" * 200_000, within_s=15)
        assert link.lost > 0


def mqtt_through(proxy: Proxy, heard: Heard) -> MqttLink:
    return MqttLink(
        MqttTarget(LOOPBACK, proxy.port),
        client_id="cut",
        subscriptions=["x"],
        on_message=heard.on_message,
        on_change=heard.on_change,
        keepalive_s=KEEPALIVE_S,
        backoff=quick(),
    )


@pytest.mark.parametrize("bad", [DEAD, Road(up=False), Road(down=False)])
async def test_an_mqtt_link_is_back_within_one_and_a_half_keepalives(
    mosquitto: str, bad: Road
) -> None:
    heard = Heard()
    to = urlsplit(mosquitto).port or 0
    async with Proxy(to) as proxy:
        link = mqtt_through(proxy, heard)
        async with running(link.run):
            await until(lambda: link.up)
            proxy.make(bad, coming=False)
            # paho looks at its clock once a second, at each of two steps.
            async with asyncio.timeout(1.5 * KEEPALIVE_S + 2):
                while heard.changes != [True, False, True]:  # noqa: ASYNC110 - no event
                    await asyncio.sleep(0.02)
            await link.publish("x", b"again")
            assert (await heard.message())[1] == b"again"


async def test_an_mqtt_link_with_nothing_to_say_is_not_taken_for_dead(
    mosquitto: str,
) -> None:
    heard = Heard()
    async with Proxy(urlsplit(mosquitto).port or 0) as proxy:
        link = mqtt_through(proxy, heard)
        async with running(link.run):
            await until(lambda: link.up)
            await asyncio.sleep(2 * KEEPALIVE_S)
            assert heard.changes == [True]


async def publishes_again(link: AmqpLink) -> None:
    """The connection that publishes notices by itself, perhaps during a publish."""
    async with asyncio.timeout(5):
        while True:
            try:
                await link.publish("e1.agent-1.dn.res", b"again")
            except LinkDown:
                await asyncio.sleep(0.1)
            else:
                return


@pytest.mark.timeout(120)  # RabbitMQ's start, and heartbeats are of whole seconds
async def test_amqp_links_notice_that_their_road_is_dead(rabbit: Node) -> None:
    port = rabbit.info.amqp_port

    async def lives_through(bad: Road) -> None:
        heard = Heard()
        async with Proxy(port) as proxy:
            url = rabbit.amqp_url("worker").replace(f":{port}/", f":{proxy.port}/")
            async with amqp(url, heard=heard, heartbeat_s=1) as link:
                await asyncio.sleep(2.5)
                assert heard.changes == [True], bad
                proxy.make(bad, coming=False)
                # Two times one and one missed, looked at each second; the broker's
                # three; and the way back.
                await until(lambda: heard.changes == [True, False, True], 5 + 2)
                await publishes_again(link)

    async with asyncio.TaskGroup() as roads:
        for bad in (DEAD, Road(up=False), Road(down=False)):
            roads.create_task(lives_through(bad))


async def test_a_link_goes_on_to_the_next_address(
    mosquitto: str, free_port: int
) -> None:
    heard = Heard()
    port = urlsplit(mosquitto).port
    url = f"mqtt://127.0.0.1:{free_port},127.0.0.1:{port}"
    async with mqtt(url, "a", "x", heard=heard) as link:
        await link.publish("x", b"there")
        assert (await heard.message())[1] == b"there"


@pytest.mark.timeout(120)  # RabbitMQ's start
async def test_a_worker_goes_on_to_the_next_address(
    rabbit: Node, free_port: int
) -> None:
    url = rabbit.amqp_url("worker").replace("@", f"@127.0.0.1:{free_port},")
    async with amqp(url) as link:
        await link.publish("e1.agent-1.dn.res", b"")
