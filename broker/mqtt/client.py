"""aiomqtt's client, mended where it loses connections, sessions or time."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Self, TypeVar

import aiomqtt
import paho.mqtt.client as paho
from typing_extensions import override

T = TypeVar("T")


class Client(aiomqtt.Client):
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
