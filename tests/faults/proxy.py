"""A TCP road between a client and a server that can be made bad while it is used.

TCP loses no byte: what the road holds back is delivered when it is good again, in
order, as retransmission would. Packets that are really lost are in
`tests.faults.lossy_link`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from dataclasses import dataclass, field
from typing import Final, Self

LOOPBACK: Final = "127.0.0.1"
CHUNK_BYTES: Final = 16 * 1024
# Chunks under way in one direction; more wait in the sender's own socket.
UNDER_WAY: Final = 64
CONNECT_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Road:
    """What the road does to the bytes of one connection.

    Attributes:
        up: whether bytes of the client arrive.
        down: whether bytes of the server arrive.
        delay_s: each way.
        bytes_per_s: each way; None is as fast as the machine.
        stalls: the share of chunks that wait `stall_s` longer, and all after them
            too: what loss looks like above TCP.
        stall_s: about a retransmission timeout.
        resets: the share of chunks at which the connection is reset.
    """

    up: bool = True
    down: bool = True
    delay_s: float = 0.0
    bytes_per_s: int | None = None
    stalls: float = 0.0
    stall_s: float = 0.3
    resets: float = 0.0


# When each chunk is due, and the chunk; an empty one is the end.
_UnderWay = asyncio.Queue[tuple[float, bytes]]

GOOD: Final = Road()
DEAD: Final = Road(up=False, down=False)


@dataclass(eq=False)
class _Connection:
    """One client and its server, and the road between them."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    road: Road
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, road: Road) -> None:
        self.road = road
        self.changed.set()
        self.changed = asyncio.Event()

    def reset(self) -> None:
        for writer in (self.client, self.server):
            raw = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                # Without lingering a close is a reset.
                linger = struct.pack("ii", 1, 0)
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()


class Proxy:
    """Listens on a loopback port and forwards to a server, for better or worse.

    Args:
        to_port: the server's, on 127.0.0.1.
        listen_host: where clients connect.
        seed: decides what `Road.stalls` and `Road.resets` hit.
    """

    def __init__(
        self, to_port: int, *, listen_host: str = LOOPBACK, seed: int = 0
    ) -> None:
        self._to_port = to_port
        self._host = listen_host
        self._draw = random.Random(seed)
        self._connections: set[_Connection] = set()
        self._coming = GOOD
        self._refuses = False
        self._tasks: asyncio.TaskGroup | None = None
        self._stack = contextlib.AsyncExitStack()
        self._serving: set[asyncio.Task[None]] = set()
        self.port = 0
        self.accepted_at_s: list[float] = []

    async def __aenter__(self) -> Self:
        self._tasks = await self._stack.enter_async_context(asyncio.TaskGroup())
        listener = await asyncio.start_server(self._accept, self._host, self.port)
        self._stack.callback(self._end)
        self._stack.callback(listener.close)
        self.port = listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.__aexit__(None, None, None)

    @property
    def connections(self) -> int:
        """How many connections there are now."""
        return len(self._connections)

    @property
    def accepted(self) -> int:
        """How many connections were ever made."""
        return len(self.accepted_at_s)

    def make(self, road: Road, *, standing: bool = True, coming: bool = True) -> None:
        """Change the road for the connections that stand, that come, or both."""
        if coming:
            self._coming = road
        if standing:
            for each in self._connections:
                each.take(road)

    def refuse(self, *, refuses: bool = True) -> None:
        """Whether connections that come are reset at once."""
        self._refuses = refuses

    def reset(self) -> None:
        """Reset every connection that stands."""
        for each in list(self._connections):
            each.reset()

    def _end(self) -> None:
        self.reset()
        for task in self._serving:
            task.cancel()

    def _accept(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        assert self._tasks is not None
        self.accepted_at_s.append(asyncio.get_running_loop().time())
        task = self._tasks.create_task(self._carry(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _carry(
        self, from_client: asyncio.StreamReader, client: asyncio.StreamWriter
    ) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                from_server, server = await asyncio.open_connection(
                    LOOPBACK, self._to_port
                )
        except OSError:
            client.transport.abort()
            return
        made = _Connection(client, server, self._coming)
        if self._refuses:
            made.reset()
            return
        for writer in (client, server):
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections.add(made)
        try:
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self._pump(made, from_client, server, up=True))
                ways.create_task(self._pump(made, from_server, client, up=False))
        finally:
            self._connections.discard(made)
            for writer in (client, server):
                writer.close()

    async def _pump(
        self,
        made: _Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        up: bool,
    ) -> None:
        under_way: _UnderWay = asyncio.Queue(UNDER_WAY)
        async with asyncio.TaskGroup() as ends:
            reading = ends.create_task(_read(made, reader, under_way))
            try:
                await self._write(made, under_way, writer, up=up)
            except OSError:
                made.reset()
            reading.cancel()

    async def _write(
        self,
        made: _Connection,
        under_way: _UnderWay,
        writer: asyncio.StreamWriter,
        *,
        up: bool,
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due_s, chunk = await under_way.get()
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            await self._bear(made, len(chunk), up=up)
            if not chunk:
                if writer.can_write_eof():
                    writer.write_eof()
                return
            writer.write(chunk)
            await writer.drain()

    async def _bear(self, made: _Connection, count: int, *, up: bool) -> None:
        """Wait as long as the road makes these bytes wait."""
        if self._draw.random() < made.road.stalls:
            await asyncio.sleep(made.road.stall_s)
        if self._draw.random() < made.road.resets:
            made.reset()
        if made.road.bytes_per_s:
            await asyncio.sleep(count / made.road.bytes_per_s)
        while not (made.road.up if up else made.road.down):
            await made.changed.wait()


async def _read(
    made: _Connection, reader: asyncio.StreamReader, under_way: _UnderWay
) -> None:
    loop = asyncio.get_running_loop()
    chunk = b"some"
    while chunk:
        try:
            chunk = await reader.read(CHUNK_BYTES)
        except OSError:
            chunk = b""
        await under_way.put((loop.time() + made.road.delay_s, chunk))
