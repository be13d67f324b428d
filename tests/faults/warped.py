"""An agent and a worker in this process, by clocks that a test may move.

Histories are written as by the processes of a stage. What else takes time, such as a
keepalive or a pause between two tries, goes by the machine's own clock.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from broker.ports import free_port
from cloud_worker.app import Worker
from cloud_worker.settings import WorkerSettings
from edge_agent.app import Agent
from edge_agent.settings import AgentSettings
from lifecycle.clock import SystemClock
from tests.faults.agent import tell_what_is_there
from tests.faults.device import LOCAL, Device
from tests.faults.journal import FaultJournal
from tests.faults.stage import LOCAL_RATE, Mosquitto, Stage

AGENT: Final = "agent-1"
# The clock is moved, and the machine is not started again.
BOOT: Final = "one-boot"
PATIENCE_S: Final = 30.0


class WarpedClock:
    """The machine's clocks, each moved by as much as was asked for."""

    def __init__(self) -> None:
        self._true = SystemClock()
        self._ahead_s = 0.0
        self._wall_ahead_ms = 0

    def monotonic(self) -> float:
        """Seconds since an arbitrary start; jumps only when all time does."""
        return self._true.monotonic() + self._ahead_s

    def boottime(self) -> float:
        """Seconds since the machine started, as `monotonic`."""
        return self._true.boottime() + self._ahead_s

    def wall_ms(self) -> int:
        """Unix time in milliseconds."""
        return self._true.wall_ms() + round(self._ahead_s * 1000) + self._wall_ahead_ms

    def advance(self, seconds: float) -> None:
        """Let time pass, for all clocks."""
        self._ahead_s += seconds

    def jump_wall(self, seconds: float) -> None:
        """Move only the wall clock."""
        self._wall_ahead_ms += round(seconds * 1000)


class Gate:
    """The way to a port of this machine, shut at first: nothing listens there."""

    def __init__(self, to_port: int) -> None:
        self.port = free_port()
        self._to_port = to_port
        self._server: asyncio.Server | None = None
        self._lines: set[asyncio.StreamWriter] = set()

    async def open(self) -> None:
        """Let connections through."""
        self._server = await asyncio.start_server(self._pass, "127.0.0.1", self.port)

    async def shut(self) -> None:
        """Cut those there are and take no further ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for line in list(self._lines):
            line.transport.abort()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        far_reader, far_writer = await asyncio.open_connection(
            "127.0.0.1", self._to_port
        )
        with self._kept(writer), self._kept(far_writer):
            async with asyncio.TaskGroup() as both:
                both.create_task(_pipe(reader, far_writer))
                both.create_task(_pipe(far_reader, writer))

    @contextmanager
    def _kept(self, writer: asyncio.StreamWriter) -> Iterator[None]:
        self._lines.add(writer)
        try:
            yield
        finally:
            self._lines.discard(writer)
            writer.close()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


def gate_of(stage: Stage) -> tuple[Gate, str]:
    """A shut gate to the cloud's broker, and the agent's URL through it."""
    parts = urlsplit(stage.node.mqtt_url(AGENT))
    gate = Gate(parts.port or 1883)
    user, _, _ = parts.netloc.rpartition("@")
    return gate, urlunsplit(parts._replace(netloc=f"{user}@127.0.0.1:{gate.port}"))


@asynccontextmanager
async def agent_inside(
    stage: Stage, mosquitto: Mosquitto, clock: WarpedClock, **settings: Any
) -> AsyncIterator[Agent]:
    """An agent of this process that hears its devices; it may be started again."""
    usual: dict[str, Any] = {
        "agent_id": AGENT,
        "state_dir": stage.folder / AGENT,
        "cloud_url": stage.node.mqtt_url(AGENT),
        "local_url": mosquitto.url,
        "bundles": [stage.near()],
        "resend_after_s": 1.0,
        "resend_most_s": 2.0,
        "disk_reserve_bytes": 0,
    }
    made = AgentSettings(**{**usual, **settings})
    journal = FaultJournal(stage.histories, f"agent:{AGENT}")
    tell_what_is_there(made.state_dir / "outbox.db", journal.history)
    stop = asyncio.Event()
    async with (
        Agent(made, clock=clock, boot_id=BOOT, journal=journal) as agent,
        asyncio.TaskGroup() as tasks,
    ):
        tasks.create_task(agent.run(stop))
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not (await agent.status())["local"]["up"]:  # noqa: ASYNC110 - no event tells
                    await asyncio.sleep(0.02)
            yield agent
        finally:
            stop.set()


@asynccontextmanager
async def worker_inside(stage: Stage, clock: WarpedClock) -> AsyncIterator[None]:
    """A worker of this process that consumes."""
    settings = WorkerSettings(
        worker_id="w1",
        amqp_url=stage.node.amqp_url("worker"),
        models=stage.models("copy"),
        drain_s=1.0,
    )
    ready, stop = asyncio.Event(), asyncio.Event()
    worker = Worker(
        settings,
        clock=clock,
        on_ready=lambda _: ready.set(),
        journal=FaultJournal(stage.histories, "worker:w1"),
    )
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(worker.run(stop))
        async with asyncio.timeout(PATIENCE_S):
            await ready.wait()
        try:
            yield
        finally:
            stop.set()


async def devices_side(stage: Stage) -> tuple[Mosquitto, Device]:
    """A Mosquitto and a device; both end with the stage."""
    mosquitto = Mosquitto(f"mosquitto-{AGENT}", stage.folder)
    stage.programs.append(mosquitto)
    await mosquitto.start()
    device = Device(mosquitto.url, "cam1", stage.histories, run=f"s{stage.seed}")
    _ = stage.background(device.run_for_ever())
    async with asyncio.timeout(PATIENCE_S):
        await device.link.wait_up()
    return mosquitto, device


@asynccontextmanager
async def local_stream(stage: Stage, mosquitto: Mosquitto) -> AsyncIterator[Device]:
    """A device that the edge answers, again and again, to measure the gaps between."""
    device = Device(
        mosquitto.url, "near", stage.histories, run=f"s{stage.seed}", resend_s=0.5
    )
    _ = stage.background(device.run_for_ever())
    async with asyncio.timeout(PATIENCE_S):
        await device.link.wait_up()
    on = True

    async def stream() -> None:
        while on:
            await device.offer(LOCAL)
            await asyncio.sleep(1.0 / LOCAL_RATE)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(stream())
        try:
            yield device
        finally:
            on = False
    await stage.until(lambda: not device.open)
