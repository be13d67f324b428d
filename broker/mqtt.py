"""One MQTT 3.1.1 connection that endures. The only user of aiomqtt.

Messages are handed over in the reader's own callback, before they are acknowledged,
and nothing here is queued: what is published is confirmed, refused or timed out.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import socket
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

import aiomqtt
import paho.mqtt.client as paho
import structlog
from typing_extensions import override

from broker.backoff import Backoff
from broker.link import (
    BadUrl,
    LinkDown,
    PublishTimeout,
    Standing,
    each_address,
    until_cancelled,
    why_unreachable,
    without_password,
)

__all__ = ["BadUrl", "LinkDown", "MqttLink", "MqttTarget", "PublishTimeout"]

log = structlog.get_logger(__name__)

T = TypeVar("T")

CONNECT_TIMEOUT_S: Final = 10.0
SUBSCRIBE_TIMEOUT_S: Final = 10.0
# RabbitMQ 4 says nothing to a client whose session was deleted: it stays connected,
# publishes and is confirmed, and hears nothing ever again.
DEAF_AFTER_S: Final = 20.0
DEAF_AFTER_MOST_S: Final = 600.0
CLOSE_TIMEOUT_S: Final = 2.0
# Nagle's algorithm meets delayed acknowledgements: 44 ms a round trip instead of 2.
NODELAY: Final = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]

_PORTS: Final = {"mqtt": 1883, "mqtts": 8883}
_REFUSED: Final = 0x80
# CONNACK 4 and 5 as MQTT 3.1.1 numbers them and as paho translates them.
_BAD_CREDENTIALS: Final = frozenset({4, 5, 0x86, 0x87})


@dataclass(frozen=True, slots=True)
class MqttTarget:
    """Where a broker is and who we are to it.

    Attributes:
        others: further addresses of the same broker, a cluster's, to be tried in turn.
    """

    host: str
    port: int
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: bool = False
    ca_file: str | None = None
    others: tuple[tuple[str, int], ...] = ()

    @classmethod
    def from_url(cls, url: str) -> MqttTarget:
        """Read `mqtt://user:password@host:1883` or `mqtts://host?ca_file=/path.pem`.

        The members of a cluster are named with commas between: `mqtt://a:1883,b:1883`.

        Raises:
            BadUrl: it names no broker.
        """
        first, *rest = (cls._from_one(each) for each in each_address(url))
        return replace(first, others=tuple((each.host, each.port) for each in rest))

    @classmethod
    def _from_one(cls, url: str) -> MqttTarget:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise BadUrl(f"not the URL of an MQTT broker ({error})") from error
        if parts.scheme not in _PORTS or not parts.hostname:
            raise BadUrl(
                f"{without_password(url)!r} does not name an MQTT broker; write "
                "mqtt://user:password@host:1883, or mqtts:// for TLS"
            )
        ca_files = parse_qs(parts.query).get("ca_file", [None])
        return cls(
            host=parts.hostname,
            port=port or _PORTS[parts.scheme],
            username=None if parts.username is None else unquote(parts.username),
            password=None if parts.password is None else unquote(parts.password),
            tls=parts.scheme == "mqtts",
            ca_file=ca_files[0],
        )

    def next_address(self) -> MqttTarget:
        """The same broker at its next address; itself when it has only one."""
        if not self.others:
            return self
        (host, port), *rest = self.others
        others = (*rest, (self.host, self.port))
        return replace(self, host=host, port=port, others=others)

    @override
    def __str__(self) -> str:
        return f"{'mqtts' if self.tls else 'mqtt'}://{self.host}:{self.port}"


class _Client(aiomqtt.Client):
    """aiomqtt's client, made safe to lose and to cancel while it connects.

    aiomqtt connects in a thread; a cancelled connect goes on there, comes up later
    and then holds the session that its successor wants. And a connection that is
    lost before `__aenter__` has returned is taken for a good one.
    """

    entered = False
    lost = False
    abandoned = False
    owes_puback = False

    def __init__(
        self,
        *args: Any,  # noqa: ANN401 - aiomqtt's own
        hand_over: Callable[[str, bytes], None],
        **kwargs: Any,  # noqa: ANN401 - aiomqtt's own
    ) -> None:
        super().__init__(*args, **kwargs)
        self.hand_over = hand_over

    @override
    async def __aenter__(self) -> Self:
        await super().__aenter__()
        if self.lost:
            raise aiomqtt.MqttError("it closed the connection at once")
        self.entered = True
        return self

    @override
    async def _wait_for(self, fut: Awaitable[T], timeout: float | None) -> T:
        # Not `asyncio.wait_for`: until Python 3.12 that may forget a cancellation.
        seconds = self.timeout if timeout is None else timeout
        try:
            async with asyncio.timeout(None if seconds == math.inf else seconds):
                return await fut
        except TimeoutError:
            raise aiomqtt.MqttError("Operation timed out") from None

    @override
    def _client_connect(self) -> None:
        super()._client_connect()
        if self.abandoned:
            # In the loop, after what paho has just scheduled there.
            self._loop.call_soon_threadsafe(self.abandon)

    @override
    def _on_disconnect(self, *args: Any, **kwargs: Any) -> None:
        self.lost = True
        if self.entered:
            super()._on_disconnect(*args, **kwargs)

    @override
    def _on_socket_register_write(
        self,
        client: paho.Client,
        userdata: Any,
        sock: Any,
    ) -> None:
        if self.abandoned:
            return  # `abandon` writes by itself, and the socket is closed after it.
        # aiomqtt's way through a pipe and the selector costs two turns of the loop,
        # more than the write itself. What we publish is written at once; a PUBACK
        # after those who wait for its message.
        if not self.entered:
            super()._on_socket_register_write(client, userdata, sock)
        elif self.owes_puback:
            self.owes_puback = False
            self._loop.call_soon(self._flush, sock)
        else:
            self._flush(sock)

    @override
    def _on_message(
        self, client: paho.Client, userdata: Any, message: paho.MQTTMessage
    ) -> None:
        # Handed over at once: no queue, and no task or wait for each message.
        self.hand_over(message.topic, bytes(message.payload))
        self.owes_puback = True

    def begin(self, topic: str, payload: bytes) -> asyncio.Event:
        """Publish at QoS 1; the event is set on PUBACK.

        As aiomqtt's `publish`, but for the task and the turns of the loop it costs.
        """
        info = self._client.publish(topic, payload, 1)
        if info.rc != paho.MQTT_ERR_SUCCESS:
            raise aiomqtt.MqttCodeError(info.rc, "Could not publish message")
        confirmation = asyncio.Event()
        self._pending_publishes[info.mid] = confirmation
        return confirmation

    def _flush(self, sock: socket.socket) -> None:
        client = self._client
        with contextlib.suppress(OSError):  # the reader learns of it too
            client.loop_write()
        # A socket that was closed meanwhile has no number for the selector.
        if client.want_write() and not self.abandoned and sock.fileno() >= 0:
            super()._on_socket_register_write(client, None, sock)

    def suspect_after(self, silent_s: float) -> None:
        """Ask the broker for a sign of life after so long, and again wait so long.

        paho does both after the keepalive that the broker was told, so that it would
        notice a dead connection only after twice that.
        """
        self._client._keepalive = silent_s  # type: ignore[assignment]  # noqa: SLF001 - only compared; the public one is closed

    def abandon(self) -> None:
        """Let go of a connection that was not made to the end."""
        self.abandoned = True
        self._client.disconnect()
        self._client.loop_write()


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
        self._client: _Client | None = None
        self._waiting: set[asyncio.Timeout] = set()
        self._unconfirmed = 0
        self._stalled = asyncio.Event()
        self._asking: str | None = None
        self._answered = answered
        self._asked_s: float | None = None
        self._deaf_after_s = DEAF_AFTER_S

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

    async def _confirmed(
        self,
        client: _Client,
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

    def _new_client(self) -> _Client:
        target = self._target
        client = _Client(
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

    async def _serve(self, client: _Client) -> None:
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

    async def _subscribe(self, client: _Client) -> None:
        for topic in self._subscriptions:
            self._asking = topic
            granted = await client.subscribe(topic, qos=1, timeout=SUBSCRIBE_TIMEOUT_S)
            if any(_code(each) >= _REFUSED for each in granted):
                raise LinkDown(self._refused_topic(topic))
        self._asking = None

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


async def _until_lost(client: _Client) -> None:
    # Messages go to `_deliver`; the iterator itself only ever reports the loss.
    async for message in client.messages:
        log.error("a message came by a way that is not used", topic=message.topic.value)


def _code(answer: object) -> int:
    """An MQTT return code, which paho gives bare or wrapped."""
    value = getattr(answer, "value", answer)
    return value if isinstance(value, int) else 0
