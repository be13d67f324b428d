"""An MQTT link: one connection that subscribes and publishes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import socket
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterator,
    Sequence,
)
from dataclasses import dataclass
from typing import Any, Final

import aiomqtt
import structlog

from broker.backoff import Backoff
from broker.link import (
    LinkDown,
    PublishTimeout,
    Standing,
    until_cancelled,
    why_unreachable,
)
from broker.mqtt.client import Client
from broker.mqtt.target import MqttTarget

log = structlog.get_logger(__name__)

CONNECT_TIMEOUT_S: Final = 10.0
SUBSCRIBE_TIMEOUT_S: Final = 10.0
# RabbitMQ 4 says nothing to a client whose session was deleted: it stays connected,
# publishes and is confirmed, and hears nothing ever again.
DEAF_AFTER_S: Final = 20.0
DEAF_AFTER_MOST_S: Final = 600.0
CLOSE_TIMEOUT_S: Final = 2.0
# Nagle's algorithm meets delayed acknowledgements: 44 ms a round trip instead of 2.
NODELAY: Final = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]

_REFUSED: Final = 0x80
# CONNACK 4 and 5 as MQTT 3.1.1 numbers them and as paho translates them.
_BAD_CREDENTIALS: Final = frozenset({4, 5, 0x86, 0x87})


@dataclass(frozen=True, slots=True)
class _Publishing:
    """What is left of a publish: to wait for its PUBACK. Nobody has to."""

    confirmed: Callable[[], Coroutine[Any, Any, None]]

    def __await__(self) -> Generator[Any, Any, None]:
        return self.confirmed().__await__()


class MqttLink:
    """A connection that subscribes, publishes at QoS 1 and comes back by itself.

    Args:
        target: the broker; after each loss or failure its next address is tried.
        client_id: this client's session at the broker; one connection at a time.
        subscriptions: filters subscribed at QoS 1 on each connect.
        on_message: called with topic and payload inside the event loop; must not
            block. What it raises is logged and costs that message only.
        on_change: called with True once every subscription is granted, and with
            False when the link is lost.
        persistent: whether the broker keeps the session while the link is down.
        window: publishes in flight at once; further ones wait their turn.
        keepalive_s: a connection that is silent is given up after little more than
            this many seconds, by the broker after one and a half times as many.
        backoff: waits between tries.
        answered: whether a publish to this topic is answered on a subscription. A link
            that hears nothing for `DEAF_AFTER_S` after one connects anew; then after
            twice as long, and so on, because whoever answers may be away.
    """

    def __init__(  # noqa: PLR0913 - the contract of a link; all but one by name
        self,
        target: MqttTarget,
        *,
        client_id: str,
        subscriptions: Sequence[str] = (),
        on_message: Callable[[str, bytes], None],
        on_change: Callable[[bool], None] | None = None,
        persistent: bool = True,
        window: int = 20,
        keepalive_s: int = 10,
        backoff: Backoff | None = None,
        answered: Callable[[str], bool] | None = None,
    ) -> None:
        self._target = target
        self._client_id = client_id
        self._subscriptions = tuple(subscriptions)
        self._on_message = on_message
        self._persistent = persistent
        self._window_size = window
        self._keepalive_s = keepalive_s
        self._standing = Standing(f"{target} as {client_id}", on_change, backoff)
        self._slots = asyncio.Semaphore(window)
        self._client: Client | None = None
        self._waiting: set[asyncio.Timeout] = set()
        self._unconfirmed = 0
        self._stalled = asyncio.Event()
        self._asking: str | None = None
        self._answered = answered
        self._asked_s: float | None = None
        self._deaf_after_s = DEAF_AFTER_S
        self._also: set[str] = set()

    @property
    def up(self) -> bool:
        """Whether the link is connected and subscribed."""
        return self._standing.up

    @property
    def last_error(self) -> str | None:
        """What keeps the link down, and what to do; None while it is up."""
        return self._standing.last_error

    async def wait_up(self) -> None:
        """Return once the link is connected and subscribed."""
        await self._standing.wait_up()

    async def run(self) -> None:
        """Connect and stay connected; only cancellation ends it."""
        # aiomqtt's own words for what ours say once.
        logging.getLogger("mqtt").setLevel(logging.CRITICAL)
        await until_cancelled(self._endure())

    async def _endure(self) -> None:
        while True:
            reason = "the connection ended"
            try:
                await self._connect_once()
            except LinkDown as error:
                reason = str(error)
            self._target = self._target.next_address()
            await self._standing.pause(reason)

    def publish(
        self, topic: str, payload: bytes, *, timeout_s: float = 10.0
    ) -> Awaitable[None]:
        """Publish at QoS 1 and return, once awaited, when the broker has acknowledged.

        With room in the window the message is written before this returns.

        Raises:
            LinkDown: there is no connection, or it was lost before the
                acknowledgement; the broker may or may not have the message.
            PublishTimeout: no acknowledgement within `timeout_s` seconds.
            ValueError: `topic` holds a wildcard, or `payload` is over 256 MB.
        """
        client = self._client
        if client is None:
            raise LinkDown(self._down())
        try:
            begun = None if self._slots.locked() else client.begin(topic, payload)
        except aiomqtt.MqttError as error:
            raise LinkDown(f"{self._target} is going down: {error}") from error
        if self._asked_s is None and self._answered and self._answered(topic):
            self._asked_s = asyncio.get_running_loop().time()
        return _Publishing(
            functools.partial(self._confirmed, client, begun, topic, payload, timeout_s)
        )

    async def hear(self, topic: str) -> None:
        """Hear one more topic at QoS 0, after reconnects too, until `unhear`.

        What is published while the link is down is not heard.

        Raises:
            LinkDown: there is no connection, or the broker does not grant it; RabbitMQ
                then closes the connection. It is not heard.
        """
        client = self._client
        if client is None:
            raise LinkDown(self._down())
        await self._subscribe_also(client, topic)

    async def unhear(self, topic: str) -> None:
        """Hear what `hear` added no more.

        Raises:
            LinkDown: there is no connection, and so no subscription either.
        """
        self._also.discard(topic)
        client = self._client
        if client is None:
            raise LinkDown(self._down())
        with self._while_up(f"{self._target} is going down"):
            async with self._soon():
                await client.unsubscribe(topic, timeout=math.inf)

    async def _subscribe_also(self, client: Client, topic: str) -> None:
        # Until it is granted it is not subscribed again: a broker that refuses it by
        # closing the connection would close every one.
        self._also.discard(topic)
        with self._while_up(self._refused_topic(topic)):
            async with self._soon():
                granted = await client.subscribe(topic, qos=0, timeout=math.inf)
        if any(_code(each) >= _REFUSED for each in granted):
            raise LinkDown(self._refused_topic(topic))
        self._also.add(topic)

    @contextlib.asynccontextmanager
    async def _soon(self) -> AsyncIterator[None]:
        """As long as a call to the broker may take, and no longer than the link holds."""
        async with asyncio.timeout(SUBSCRIBE_TIMEOUT_S) as deadline:
            self._waiting.add(deadline)
            try:
                yield
            finally:
                self._waiting.discard(deadline)

    @contextlib.contextmanager
    def _while_up(self, reason: str) -> Iterator[None]:
        try:
            yield
        except (aiomqtt.MqttError, TimeoutError) as error:
            raise LinkDown(reason) from error

    async def _confirmed(
        self,
        client: Client,
        begun: asyncio.Event | None,
        topic: str,
        payload: bytes,
        timeout_s: float,
    ) -> None:
        deadline = asyncio.timeout(timeout_s)
        try:
            async with deadline:
                self._waiting.add(deadline)
                async with self._slots:
                    if client is not self._client:
                        raise LinkDown(self._down())
                    await (begun or client.begin(topic, payload)).wait()
        except TimeoutError:
            if client is not self._client:
                raise LinkDown(self._down()) from None
            self._count_unconfirmed()
            raise PublishTimeout(
                f"{self._target} did not acknowledge a message within {timeout_s:g} s; "
                "send it again later"
            ) from None
        except aiomqtt.MqttError as error:
            raise LinkDown(f"{self._target} is going down: {error}") from error
        finally:
            self._waiting.discard(deadline)

    def _down(self) -> str:
        why = self.last_error or "the connection was lost or not made yet"
        return f"no link to {self._target}: {why}"

    def _count_unconfirmed(self) -> None:
        # Each leaves a message and a place in paho's window until the connection
        # ends, so a broker that confirms nothing must not be fed for ever.
        self._unconfirmed += 1
        if self._unconfirmed * 2 >= self._window_size:
            self._stalled.set()

    async def _connect_once(self) -> None:
        """Connect, subscribe and hold the connection; raises LinkDown at its end."""
        client = self._new_client()
        with contextlib.ExitStack() as undo:
            undo.callback(client.abandon)
            try:
                await client.__aenter__()
            except (aiomqtt.MqttError, OSError, ValueError) as error:
                raise LinkDown(self._why_unconnected(error)) from error
            undo.pop_all()
        client.timeout = CLOSE_TIMEOUT_S
        client.suspect_after(self._keepalive_s / 2)
        try:
            await self._serve(client)
        finally:
            self._client = None
            self._standing.fall()
            self._fail_waiting()
            with contextlib.suppress(aiomqtt.MqttError):
                await client.__aexit__(None, None, None)

    def _new_client(self) -> Client:
        target = self._target
        client = Client(
            target.host,
            target.port,
            username=target.username,
            password=target.password,
            identifier=self._client_id,
            hand_over=self._deliver,
            protocol=aiomqtt.ProtocolVersion.V311,
            clean_session=not self._persistent,
            timeout=CONNECT_TIMEOUT_S,
            keepalive=self._keepalive_s,
            max_inflight_messages=self._window_size,
            tls_params=(
                aiomqtt.TLSParameters(ca_certs=target.ca_file) if target.tls else None
            ),
            socket_options=NODELAY,
        )
        client.pending_calls_threshold = self._window_size + len(self._subscriptions)
        return client

    async def _serve(self, client: Client) -> None:
        self._unconfirmed = 0
        self._asked_s = None
        self._stalled.clear()
        try:
            async with asyncio.TaskGroup() as watchers:
                watchers.create_task(_until_lost(client))
                watchers.create_task(self._until_stalled())
                watchers.create_task(self._until_deaf())
                await self._subscribe(client)
                self._client = client
                self._standing.rise()
        except* (aiomqtt.MqttError, LinkDown, OSError) as caught:
            raise LinkDown(self._why_lost(caught.exceptions[0])) from caught

    async def _until_stalled(self) -> None:
        await self._stalled.wait()
        raise LinkDown(
            f"{self._target} acknowledged none of {self._unconfirmed} messages in "
            "time: it may be over its memory or disk limit; look at its log"
        )

    async def _until_deaf(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            asked_s = loop.time() if self._asked_s is None else self._asked_s
            left_s = asked_s + self._deaf_after_s - loop.time()
            if left_s <= 0:
                break
            await asyncio.sleep(left_s)
        waited_s = self._deaf_after_s
        self._deaf_after_s = min(2 * waited_s, DEAF_AFTER_MOST_S)
        raise LinkDown(
            f"nothing was heard from {self._target} for {waited_s:g} s after a question: "
            "nobody answers, or the session was deleted; it is made anew"
        )

    async def _subscribe(self, client: Client) -> None:
        for topic in self._subscriptions:
            self._asking = topic
            granted = await client.subscribe(topic, qos=1, timeout=SUBSCRIBE_TIMEOUT_S)
            if any(_code(each) >= _REFUSED for each in granted):
                raise LinkDown(self._refused_topic(topic))
        self._asking = None
        for topic in tuple(self._also):
            await self._subscribe_also(client, topic)

    def _refused_topic(self, topic: str) -> str:
        return (
            f"{self._target} did not grant a subscription to {topic!r}: give user "
            f"{self._target.username!r} permission to read it and its session queue"
        )

    def _fail_waiting(self) -> None:
        now = asyncio.get_running_loop().time()
        for deadline in self._waiting:
            if not deadline.expired():
                deadline.reschedule(now)

    def _deliver(self, topic: str, payload: bytes) -> None:
        self._asked_s = None
        self._deaf_after_s = DEAF_AFTER_S
        try:
            self._on_message(topic, payload)
        except Exception:
            # All there is: it is somebody else's function, and past here it would end
            # in paho's reader, the message never acknowledged.
            log.exception(
                "a message was not handled", link=self._standing.name, topic=topic
            )

    def _why_unconnected(self, error: Exception) -> str:
        target = self._target
        if isinstance(error, aiomqtt.exceptions.MqttConnectError):
            code = _code(error.rc)
            if code in _BAD_CREDENTIALS:
                return (
                    f"{target} refused user {target.username!r}: check the user and "
                    "password in the URL, and that the broker knows the user"
                )
            return f"{target} refused client id {self._client_id!r}: {error}"
        if isinstance(error, aiomqtt.MqttError) and error.__context__ is None:
            return self._why_lost(error)
        # aiomqtt keeps only the text of the cause, so look behind its error.
        reason = why_unreachable(str(target), error.__context__ or error)
        return f"{reason} (does it speak TLS there?)" if target.tls else reason

    def _why_lost(self, error: Exception) -> str:
        if isinstance(error, LinkDown):
            return str(error)
        if self._asking is not None:
            # RabbitMQ refuses a subscription by closing the connection.
            return self._refused_topic(self._asking)
        reason = f"the connection to {self._target} was lost"
        if self._standing.stable:
            return reason
        return (
            f"{reason} soon after connecting: another client may use the client id "
            f"{self._client_id!r}, or user {self._target.username!r} may not publish "
            "to the topic that was used"
        )


async def _until_lost(client: Client) -> None:
    # Messages go to `_deliver`; the iterator itself only ever reports the loss.
    async for message in client.messages:
        log.error("a message came by a way that is not used", topic=message.topic.value)


def _code(answer: object) -> int:
    """An MQTT return code, which paho gives bare or wrapped."""
    value = getattr(answer, "value", answer)
    return value if isinstance(value, int) else 0
