"""A spill's round trip through the Python API against a bare echo over the same broker.

Both idle, one at a time, 1 KB: MQTT → quorum queue → AMQP in another process → MQTT.
The two take turns in short rounds, so that a machine that drifts slows both.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final

import aiomqtt
import numpy as np

from benchmarks.limits import (
    Limit,
    arguments,
    median,
    progress,
    quantile,
    report,
    together,
)
from broker.mqtt.target import MqttTarget
from broker.node import Node
from edge_agent.app import Agent
from edge_agent.settings import AgentSettings
from lifecycle.logs import configure_logs

PAYLOAD_BYTES: Final = 1024
ROUNDS: Final = 150
PER_ROUND: Final = 10
WARM_UP: Final = 100
MODELS: Final = Path(__file__).parent / "models"

Trip = Callable[[], Awaitable[None]]


@contextlib.asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A child that has printed READY; ended by its own id."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *arguments, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert child.stdout is not None
        async with asyncio.timeout(120):
            line = await child.stdout.readline()
        if not line.startswith(b"READY"):
            raise RuntimeError(f"{arguments[0]} did not start: {line!r}")
        yield child
    finally:
        if child.returncode is None:
            child.terminate()
            await child.wait()


@contextlib.asynccontextmanager
async def bare_echo(node: Node) -> AsyncIterator[Trip]:
    """One round trip over the bare road."""
    target = MqttTarget.from_url(node.mqtt_url("bare"))
    heard: asyncio.Queue[None] = asyncio.Queue()
    payload = bytes(PAYLOAD_BYTES)
    async with (
        process("benchmarks.echo", node.amqp_url("worker"), "echo", "e1.bare.dn.res"),
        aiomqtt.Client(
            target.host,
            target.port,
            username=target.username,
            password=target.password,
            identifier="bare",
            clean_session=False,
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
        ) as client,
        asyncio.TaskGroup() as tasks,
    ):
        await client.subscribe("e1/bare/dn/#", qos=1)

        async def listen() -> None:
            async for _ in client.messages:
                heard.put_nowait(None)

        listening = tasks.create_task(listen())

        async def trip() -> None:
            await client.publish("e1/bare/up/req/echo/norm", payload, qos=1)
            await heard.get()

        yield trip
        listening.cancel()


@contextlib.asynccontextmanager
async def spill(node: Node, folder: Path) -> AsyncIterator[Trip]:
    """One spill through the Python API to a worker whose model copies its input."""
    settings = AgentSettings(
        agent_id="ours",
        state_dir=folder / "agent",
        cloud_url=node.mqtt_url("ours"),
        local=False,
    )
    payload = np.zeros((1, PAYLOAD_BYTES), np.uint8)
    async with (
        process(
            "cloud_worker",
            "run",
            "--amqp-url",
            node.amqp_url("worker"),
            "--models",
            str(MODELS),
            "--log-level",
            "warning",
        ),
        Agent(settings) as agent,
    ):

        async def trip() -> None:
            answer = await agent.infer("copy", {"payload": payload})
            if answer.status != "answered":
                raise RuntimeError(f"not answered: {answer}")

        yield trip


async def timed_ms(trip: Trip, count: int) -> list[float]:
    """Milliseconds of each of `count` trips, one after the other."""
    taken = []
    for _ in range(count):
        started = time.perf_counter()
        async with asyncio.timeout(30):
            await trip()
        taken.append((time.perf_counter() - started) * 1000)
    return taken


async def measure() -> tuple[list[list[float]], list[list[float]]]:
    """Rounds of the bare echo and of ours, in turn."""
    with tempfile.TemporaryDirectory(prefix="ovs-") as name:
        folder = Path(name)
        progress("starting a private RabbitMQ, an echo and a worker")
        node = Node(folder / "rabbit", agents=("bare", "ours"), models=("copy", "echo"))
        async with (
            node,
            bare_echo(node) as bare,
            spill(node, folder) as ours,
        ):
            await timed_ms(bare, WARM_UP)
            await timed_ms(ours, WARM_UP)
            rounds_bare, rounds_ours = [], []
            progress(f"{ROUNDS} rounds of {PER_ROUND} trips each way, in turn")
            for _ in range(ROUNDS):
                rounds_bare.append(await timed_ms(bare, PER_ROUND))
                rounds_ours.append(await timed_ms(ours, PER_ROUND))
        return rounds_bare, rounds_ours


def main() -> int:
    chosen = arguments(__doc__ or "")
    configure_logs("error")
    bare, ours = asyncio.run(measure())
    by_round = [median(b) / median(a) for a, b in zip(bare, ours, strict=True)]
    all_bare, all_ours = together(bare), together(ours)
    figures = {
        "payload_bytes": PAYLOAD_BYTES,
        "trips_each": len(all_ours),
        "echo_p50_ms": round(median(all_bare), 3),
        "echo_p99_ms": round(quantile(all_bare, 0.99), 3),
        "spill_p50_ms": round(median(all_ours), 3),
        "spill_p99_ms": round(quantile(all_ours, 0.99), 3),
        "ratio_by_round_p10": round(quantile(by_round, 0.1), 3),
        "ratio_by_round_p50": round(median(by_round), 3),
        "ratio_by_round_p90": round(quantile(by_round, 0.9), 3),
    }
    ratio = median(all_ours) / median(all_bare)
    limits = [Limit("spill_over_echo_p50", round(ratio, 3), 1.3)]
    return report(figures, limits, as_json=chosen.json)


if __name__ == "__main__":
    sys.exit(main())
