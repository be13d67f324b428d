"""The roads to a contender: RabbitMQ, or HTTP for a server without a queue.

Sending never waits for an answer; answers are told to `heard`, with the time.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Final, Protocol

import aiormq
from aiormq.abc import DeliveredMessage
from aiormq.exceptions import AMQPError, ChannelNotFoundEntity

from benchmarks.peers.accounts import Answer
from benchmarks.peers.wires import Ask, Wire

READY_S: Final = 90.0
LOOK_EVERY_S: Final = 0.1
CALL_S: Final = 30.0
HTTP_CONNECTIONS: Final = 256
HTTP_CALL_S: Final = 20.0

Heard = Callable[[Answer, float], None]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Road(Protocol):
    """How requests get there."""

    async def send(self, ask: Ask) -> None:
        """Send one, without waiting for what becomes of it."""

    async def wait_consumed(self, workers: int = 1) -> None:
        """Return once so many of the contender's workers take requests."""

    async def depth(self) -> int:
        """How many requests are waiting for it."""

    async def empty(self) -> None:
        """Throw away what waits."""

    @property
    def backlog_at_client(self) -> bool:
        """Whether what waits does so here, for want of a queue."""

    def hold(self) -> None:
        """Send nothing until `release`."""

    def release(self) -> None:
        """Send what was held."""


class AmqpRoad:
    """Publishes to a queue and consumes the answers."""

    def __init__(
        self,
        wire: Wire,
        queue: str,
        results: str,
        *,
        channel: aiormq.abc.AbstractChannel,
        connection: aiormq.abc.AbstractConnection,
    ) -> None:
        self._wire = wire
        self._queue = queue
        self._results = results
        self._channel = channel
        self._connection = connection

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, url: str, wire: Wire, queue: str, results: str, heard: Heard
    ) -> AsyncIterator[AmqpRoad]:
        """Declare the queue of answers and consume it."""
        connection = await aiormq.connect(url)
        try:
            channel = await connection.channel(publisher_confirms=False)
            inbox = wire.inbox(results)
            await channel.queue_declare(
                results, durable=True, arguments=inbox.arguments
            )
            if inbox.exchange is not None:
                await channel.queue_bind(results, inbox.exchange, inbox.routing_key)

            async def on_answer(message: DeliveredMessage) -> None:
                at_s = time.perf_counter()
                for answer in wire.read(message.body, message.header.properties):
                    heard(answer, at_s)

            consumed = await channel.basic_consume(results, on_answer, no_ack=True)
            road = cls(wire, queue, results, channel=channel, connection=connection)
            try:
                yield road
            finally:
                await road._leave(str(consumed.consumer_tag))
        finally:
            with contextlib.suppress(AMQPError, OSError, TimeoutError):
                async with asyncio.timeout(CALL_S):
                    await connection.close()

    async def send(self, ask: Ask) -> None:
        letter = self._wire.write(ask, self._queue, self._results)
        async with asyncio.timeout(CALL_S):
            await self._channel.basic_publish(
                letter.body,
                exchange=letter.exchange,
                routing_key=letter.routing_key,
                properties=letter.properties,
            )

    async def wait_consumed(self, workers: int = 1) -> None:
        async with asyncio.timeout(READY_S):
            for queue in self._wire.queues(self._queue):
                while await self._consumers(queue) < workers:  # noqa: ASYNC110 - RabbitMQ tells nobody
                    await asyncio.sleep(LOOK_EVERY_S)

    async def _consumers(self, queue: str) -> int:
        channel = await self._connection.channel()
        try:
            found = await channel.queue_declare(queue, passive=True, timeout=CALL_S)
        except ChannelNotFoundEntity:
            return 0
        await channel.close()
        return found.consumer_count or 0

    async def depth(self) -> int:
        total = 0
        for queue in self._wire.queues(self._queue):
            found = await self._channel.queue_declare(
                queue, passive=True, timeout=CALL_S
            )
            total += found.message_count or 0
        return total

    async def empty(self) -> None:
        for queue in self._wire.queues(self._queue):
            await self._channel.queue_purge(queue, timeout=CALL_S)

    @property
    def backlog_at_client(self) -> bool:
        return False

    def hold(self) -> None:
        """RabbitMQ holds."""

    def release(self) -> None:
        """RabbitMQ holds."""

    async def _leave(self, consumer_tag: str) -> None:
        """Leave nothing to the next: ours keeps its queues, emptied."""
        with contextlib.suppress(AMQPError, OSError, TimeoutError, RuntimeError):
            await self._channel.basic_cancel(consumer_tag, timeout=CALL_S)
            await self.empty()
            await self._channel.queue_delete(self._results, timeout=CALL_S)
            if self._queue in self._wire.queues(self._queue):
                await self._channel.queue_delete(self._queue, timeout=CALL_S)


class HttpRoad:
    """Keep-alive connections; what finds none free waits here, as in a client's pool."""

    def __init__(
        self,
        port: int,
        path: Callable[[str], str],
        heard: Heard,
        group: asyncio.TaskGroup,
    ) -> None:
        self._port = port
        self._path = path
        self._heard = heard
        self._waiting: asyncio.Queue[Ask] = asyncio.Queue(100_000)
        self._clients = [
            group.create_task(self._client()) for _ in range(HTTP_CONNECTIONS)
        ]
        self._open = asyncio.Event()
        self._open.set()

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls, port: int, path: Callable[[str], str], heard: Heard
    ) -> AsyncIterator[HttpRoad]:
        """A pool of connections, each opened at its first request."""
        async with asyncio.TaskGroup() as group:
            road = cls(port, path, heard, group)
            try:
                yield road
            finally:
                for each in road._clients:
                    each.cancel()

    async def send(self, ask: Ask) -> None:
        self._waiting.put_nowait(ask)

    async def wait_consumed(self, workers: int = 1) -> None:  # noqa: ARG002 - a port has one
        async with asyncio.timeout(READY_S):
            while True:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", self._port)
                    writer.close()
                    return
                await asyncio.sleep(LOOK_EVERY_S)

    async def depth(self) -> int:
        return self._waiting.qsize()

    async def empty(self) -> None:
        while not self._waiting.empty():
            self._waiting.get_nowait()

    @property
    def backlog_at_client(self) -> bool:
        return True

    def hold(self) -> None:
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    async def _client(self) -> None:
        streams: Streams | None = None
        try:
            while True:
                ask = await self._waiting.get()
                await self._open.wait()
                try:
                    if streams is None or streams[0].at_eof():  # closed when idle
                        streams = await asyncio.open_connection("127.0.0.1", self._port)
                    answer = await self._call(*streams, ask)
                except (OSError, asyncio.IncompleteReadError):
                    # HTTP leaves the retry to the client, and this one does not.
                    answer = Answer(ask.number, ok=False)
                    if streams is not None:
                        streams[1].close()
                    streams = None
                self._heard(answer, time.perf_counter())
                if not answer.ok:
                    await asyncio.sleep(LOOK_EVERY_S)
        finally:
            if streams is not None:
                streams[1].close()

    async def _call(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ask: Ask
    ) -> Answer:
        path = self._path(ask.model)
        data: str | list[str] = base64.b64encode(ask.body).decode()
        if path == f"/{ask.model}":  # a batcher behind each path takes rows
            data = [str(data)]
        body = json.dumps({"model": ask.model, "data": data}).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        try:
            async with asyncio.timeout(HTTP_CALL_S):
                status = await read_status(reader)
        except TimeoutError:
            raise OSError("no answer") from None
        return Answer(ask.number, ok=status == 200)


async def read_status(reader: asyncio.StreamReader) -> int:
    """Read one answer to its end; gives its status."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    status = int(head.split()[1])
    fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
    if "content-length" in fields:
        await reader.readexactly(int(fields["content-length"]))
        return status
    while size := int(await reader.readuntil(b"\r\n"), 16):  # in chunks
        await reader.readexactly(size + 2)
    await reader.readexactly(2)
    return status
