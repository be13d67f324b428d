"""The MQTT link against Mosquitto, and against servers that misbehave."""

import asyncio
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from typing_extensions import override

from broker.backoff import Backoff
from broker.link import BadUrl, LinkDown, PublishTimeout
from broker.mqtt.link import MqttLink
from broker.mqtt.target import MqttTarget
from tests.integration.broker.links import Heard, mqtt, quick, running, within
from tests.waiting import until

pytestmark = pytest.mark.integration

CONNACK = b"\x20\x02\x00\x00"
Speak = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(speak: Speak) -> AsyncIterator[int]:
    """A TCP server that speaks as it is told, and its port."""
    connections: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(writer)
        try:
            await speak(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()
            connections.discard(writer)

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listener:
        yield listener.sockets[0].getsockname()[1]
        for writer in list(connections):
            writer.close()
        await asyncio.sleep(0)


async def accept_but_never_confirm(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    await reader.read(4096)
    writer.write(CONNACK)
    while await reader.read(65536):
        pass


def link_to(port: int, **more: Any) -> MqttLink:
    more.setdefault("backoff", quick())
    return MqttLink(
        MqttTarget("127.0.0.1", port),
        client_id="test",
        on_message=Heard().on_message,
        **more,
    )


async def test_a_message_goes_through_mosquitto_and_back(mosquitto: str) -> None:
    heard = Heard()
    async with mqtt(mosquitto, "a", "there/#", heard=heard) as link:
        await link.publish("there/x", b"\x00payload")
        assert await heard.message() == ("there/x", b"\x00payload")
    assert heard.changes == [True, False]


async def test_many_publishes_at_once_all_arrive(mosquitto: str) -> None:
    heard = Heard()
    async with mqtt(mosquitto, "a", "n", heard=heard, window=8) as link:
        async with asyncio.TaskGroup() as publishes:
            for number in range(500):
                publishes.create_task(
                    caught(link.publish("n", number.to_bytes(2, "big")))
                )
        got = [(await heard.message())[1] for _ in range(500)]
    assert sorted(got) == [number.to_bytes(2, "big") for number in range(500)]


async def test_a_handler_that_fails_costs_only_its_own_message(mosquitto: str) -> None:
    heard = Heard()

    def fail_first(topic: str, payload: bytes) -> None:
        if payload == b"bad":
            raise RuntimeError("a handler's own fault")
        heard.on_message(topic, payload)

    link = MqttLink(
        MqttTarget.from_url(mosquitto),
        client_id="a",
        subscriptions=["x"],
        on_message=fail_first,
        on_change=heard.on_change,
    )
    async with running(link.run):
        await within(link.wait_up())
        await link.publish("x", b"bad")
        await link.publish("x", b"good")
        assert (await heard.message())[1] == b"good"
        assert heard.changes == [True]


async def test_small_packets_leave_at_once(mosquitto: str) -> None:
    async with mqtt(mosquitto, "a") as link:
        assert link._client is not None
        sock = link._client._client.socket()
        assert isinstance(sock, socket.socket)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_a_publish_without_a_link_is_refused_at_once(free_port: int) -> None:
    link = link_to(free_port)
    with pytest.raises(LinkDown):
        await link.publish("x", b"")
    async with running(link.run):
        await until(lambda: link.last_error)
        started = time.monotonic()
        with pytest.raises(LinkDown, match="nothing listens"):
            await link.publish("x", b"", timeout_s=30)
        assert time.monotonic() - started < 1
        assert str(free_port) in str(link.last_error)
        assert "start the broker" in str(link.last_error)


async def test_a_publish_that_is_not_confirmed_times_out() -> None:
    async with server(accept_but_never_confirm) as port:
        link = link_to(port)
        async with running(link.run):
            await within(link.wait_up())
            with pytest.raises(PublishTimeout, match=r"0\.2 s"):
                await link.publish("x", b"", timeout_s=0.2)
            assert link.up


async def test_every_waiting_publish_fails_promptly_when_the_link_is_lost() -> None:
    dropped = asyncio.Event()

    async def drop_when_told(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await reader.read(4096)
        writer.write(CONNACK)
        await dropped.wait()

    async with server(drop_when_told) as port:
        link = link_to(port, window=2)
        async with running(link.run):
            await within(link.wait_up())
            async with asyncio.timeout(5), asyncio.TaskGroup() as publishes:
                waiting = [
                    publishes.create_task(caught(link.publish("x", b"", timeout_s=60)))
                    for _ in range(6)
                ]
                await asyncio.sleep(0.1)
                dropped.set()
        assert [type(each.result()) for each in waiting] == [LinkDown] * 6


async def caught(awaitable: Awaitable[None]) -> Exception | None:
    try:
        await awaitable
    except LinkDown as error:
        return error
    return None


async def test_a_broker_that_confirms_nothing_is_left_and_tried_again() -> None:
    connections = 0

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await accept_but_never_confirm(reader, writer)

    async with server(count) as port:
        link = link_to(port, window=4)
        async with running(link.run):
            await within(link.wait_up())
            async with asyncio.TaskGroup() as publishes:
                for _ in range(4):
                    publishes.create_task(caught(link.publish("x", b"", timeout_s=0.2)))
            await until(lambda: connections >= 2)


async def test_a_link_that_hears_no_answer_connects_anew_and_then_less_often(
    mosquitto: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.mqtt.link.DEAF_AFTER_S", 0.3)
    heard = Heard()
    asked = {"answered": lambda topic: topic == "ask"}
    async with mqtt(mosquitto, "a", "answer", heard=heard, **asked) as link:
        await link.publish("told", b"")
        await asyncio.sleep(0.6)
        assert heard.changes == [True]
        for again in (0.3, 0.6):
            began = time.monotonic()
            await link.publish("ask", b"")
            heard.changes.clear()
            await until(lambda: heard.changes == [False, True])
            assert time.monotonic() - began >= again
        await link.publish("ask", b"")
        await link.publish("answer", b"")
        await heard.message()
        await asyncio.sleep(1.0)
        assert heard.changes == [False, True]


async def test_a_broker_that_drops_each_connection_is_not_hammered() -> None:
    connections = 0

    async def drop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.read(4096)
        writer.write(CONNACK)
        await writer.drain()

    class Longest(random.Random):
        """Draws the longest wait each time."""

        @override
        def uniform(self, a: float, b: float) -> float:
            return max(a, b)

    async with server(drop) as port:
        link = link_to(port, backoff=Backoff(0.1, 60, Longest()))
        async with running(link.run):
            await asyncio.sleep(2)
        # At 0, 0.1, 0.3, 0.7 and 1.5 s; a reset after each would make it twenty.
        assert 2 <= connections <= 5
        assert "client id" in str(link.last_error)


async def test_a_name_without_an_address_is_named_and_tried_again() -> None:
    target = MqttTarget("no-such-host.invalid", 1883)
    link = MqttLink(
        target, client_id="a", on_message=Heard().on_message, backoff=quick()
    )
    async with running(link.run):
        await until(lambda: link.last_error)
        assert "no-such-host.invalid" in str(link.last_error)
        assert "host name" in str(link.last_error)


# paho forgets the socket of a handshake that was cut; the collector closes it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_plain_mqtt_where_tls_is_wanted_is_explained(mosquitto: str) -> None:
    plain = MqttTarget.from_url(mosquitto)
    link = MqttLink(
        MqttTarget("127.0.0.1", plain.port, tls=True),
        client_id="a",
        on_message=Heard().on_message,
        backoff=quick(),
    )
    async with running(link.run):
        await until(lambda: link.last_error)
        assert f"mqtts://127.0.0.1:{plain.port}" in str(link.last_error)
        assert "TLS" in str(link.last_error)
        assert not link.up


async def test_a_link_that_is_cancelled_while_it_connects_leaves_no_connection() -> (
    None
):
    connected, ended = asyncio.Event(), asyncio.Event()

    async def say_nothing(
        reader: asyncio.StreamReader, _: asyncio.StreamWriter
    ) -> None:
        connected.set()
        while await reader.read(4096):
            pass
        ended.set()

    async with server(say_nothing) as port:
        async with running(link_to(port).run):
            await within(connected.wait())
        async with asyncio.timeout(5):
            await ended.wait()


async def test_the_link_comes_back_when_the_broker_does(free_port: int) -> None:
    heard = Heard()
    target = MqttTarget("127.0.0.1", free_port)
    link = MqttLink(
        target,
        client_id="a",
        on_message=heard.on_message,
        on_change=heard.on_change,
        backoff=quick(),
    )
    async with running(link.run):
        await until(lambda: link.last_error)
        for _ in range(2):
            listener = await asyncio.start_server(
                answer_connect, "127.0.0.1", free_port
            )
            await within(link.wait_up())
            assert link.last_error is None
            listener.close()
            await until(lambda: not link.up)
    assert heard.changes == [True, False, True, False]


async def answer_connect(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    await reader.read(4096)
    writer.write(CONNACK)
    await asyncio.sleep(0.2)
    writer.close()


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("mqtt://h", MqttTarget("h", 1883)),
        ("mqtt://u:p%40s@h:99", MqttTarget("h", 99, "u", "p@s")),
        (
            "mqtts://h?ca_file=/ca.pem",
            MqttTarget("h", 8883, tls=True, ca_file="/ca.pem"),
        ),
        ("mqtt://[::1]:1884", MqttTarget("::1", 1884)),
        (
            "mqtt://u:p@a,b:99",
            MqttTarget("a", 1883, "u", "p", others=(("b", 99),)),
        ),
    ],
)
def test_a_url_names_a_broker(url: str, target: MqttTarget) -> None:
    assert MqttTarget.from_url(url) == target


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h:1883",
        "http://h",
        "mqtt://",
        "mqtt://h:99999",
        "mqtt://u:secret@",
        "mqtt://u:secret@a,",
    ],
)
def test_a_url_that_names_no_broker_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(BadUrl) as refusal:
        MqttTarget.from_url(url)
    assert "secret" not in str(refusal.value)


def test_the_addresses_of_a_cluster_are_tried_in_turn() -> None:
    first = MqttTarget.from_url("mqtt://a:1,b:2,c:3")
    second = first.next_address()

    assert [str(second), str(second.next_address())] == ["mqtt://b:2", "mqtt://c:3"]
    assert second.next_address().next_address() == first


def test_a_password_is_not_shown_with_its_target() -> None:
    target = MqttTarget.from_url("mqtt://u:secret@h")

    assert "secret" not in f"{target!r} {target}"
