"""One worker with the ResNet and a deep queue against the same SavedModel in process.

Envelopes of 32 requests, as an agent sends when a backlog drains, and of one. The
worker and the model in process take turns of a few seconds, each stopped while the
other runs, so that a machine that drifts slows both.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import aio_pika
import msgpack
import numpy as np
from aio_pika.abc import AbstractIncomingMessage

from benchmarks.limits import median, progress
from benchmarks.path import process
from benchmarks.peers.processes import stopped
from broker.codec import encode
from broker.messages import Priority, Reason, Request, Tensor
from broker.node import Node
from broker.topics import as_routing_key, requests, results
from lifecycle.clock import SystemClock

EXAMPLE: Final = Path(__file__).parent.parent / "examples" / "fashion"
MODELS: Final = EXAMPLE / "cloud"
IMAGES: Final = EXAMPLE / "images" / "test1000.npz"
AGENT: Final = "bench"
TURN_S: Final = 2.5
SETTLE_S: Final = 0.3
MOST_PER_S: Final = 4_000
MOST_S: Final = 120.0


class InProcess:
    """The model in a process of its own, run when asked."""

    def __init__(self, child: asyncio.subprocess.Process, said: dict[str, Any]) -> None:
        self._child = child
        self.rates: dict[str, float] = said["rates"]
        self.best: int = said["best"]

    @classmethod
    @contextlib.asynccontextmanager
    async def start(cls) -> AsyncIterator[InProcess]:
        """Start it and find its best batch size."""
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.in_process"),
            *(str(MODELS / "fashion" / "1"), str(IMAGES)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            assert child.stdout is not None
            async with asyncio.timeout(MOST_S):
                line = await child.stdout.readline()
            yield cls(child, json.loads(line))
        finally:
            child.kill()
            await child.wait()

    async def per_second(self) -> float:
        """Images a second during one turn."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(f"{TURN_S}\n".encode())
        async with asyncio.timeout(TURN_S + 30):
            return float(await self._child.stdout.readline())


def envelopes(count: int, items: int) -> list[bytes]:
    """`count` requests of real images, `items` to an envelope."""
    images = (np.load(IMAGES)["images"][:, None, :, :, None] / 255).astype(np.float32)
    expires = SystemClock().wall_ms() + 3_600_000

    def request(number: int) -> Request:
        data = images[number % len(images)].tobytes()
        image = Tensor(dtype="float32", shape=[1, 28, 28, 1], data=data)
        return Request(
            id=f"r{number}",
            device="cam",
            model="fashion",
            reason=Reason.FORCED,
            expires_at_ms=expires,
            tensors={"image": image},
        )

    return [
        encode(*(request(number) for number in range(first, first + items)))
        for first in range(0, count, items)
    ]


async def fill(channel: aio_pika.abc.AbstractChannel, items: int, turns: int) -> int:
    """Fill the queue for all turns; gives how many requests it holds."""
    count = round(turns * (TURN_S + SETTLE_S) * MOST_PER_S / items) * items
    topic = await channel.get_exchange("amq.topic")
    key = as_routing_key(requests(AGENT, "fashion", Priority.NORM))
    bodies = envelopes(count, items)
    for start in range(0, len(bodies), 200):
        await asyncio.gather(
            *(
                topic.publish(aio_pika.Message(each, delivery_mode=2), key)
                for each in bodies[start : start + 200]
            )
        )
    return count


async def turns(
    node: Node, limit: InProcess, items: int, count_of_turns: int
) -> tuple[list[float], list[float]]:
    """Requests a second of the worker and of the model in process, turn by turn."""
    connection = await aio_pika.connect(node.amqp_url("admin"))
    async with connection:
        channel = await connection.channel()
        inbox = await channel.declare_queue(exclusive=True)
        await inbox.bind("amq.topic", as_routing_key(results(AGENT)))
        progress(f"filling the queue, {items} an envelope")
        count = await fill(channel, items, count_of_turns)
        seen = 0

        async def on_result(message: AbstractIncomingMessage) -> None:
            nonlocal seen
            seen += len(msgpack.unpackb(message.body)["items"])

        await inbox.consume(on_result, no_ack=True)
        pool, alone = [], []
        async with process(
            *("cloud_worker", "run", "--amqp-url", node.amqp_url("worker")),
            *("--models", str(MODELS), "--log-level", "warning"),
        ) as worker:
            for number in range(count_of_turns):
                progress(f"turn {number + 1} of {count_of_turns}")
                await asyncio.sleep(SETTLE_S)
                before, started = seen, time.perf_counter()
                await asyncio.sleep(TURN_S)
                pool.append((seen - before) / (time.perf_counter() - started))
                if seen >= count:
                    raise RuntimeError("the queue ran dry: fill it with more")
                with stopped(worker.pid):
                    alone.append(await limit.per_second())
        leftovers = await channel.declare_queue(
            f"infer.fashion.{Priority.NORM.value}", passive=True
        )
        await leftovers.purge()
    return pool, alone


async def measure(count: int) -> dict[str, Any]:
    """The figures of `count` turns, with envelopes of 32 and of one."""
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="ovs-") as folder:
        progress("starting a private RabbitMQ and the model in process")
        async with (
            Node(Path(folder), agents=(AGENT,), models=("fashion",)) as node,
            InProcess.start() as limit,
        ):
            figures["in_process_by_batch_per_s"] = {
                size: round(rate, 1) for size, rate in limit.rates.items()
            }
            figures["in_process_best_batch"] = limit.best
            for items in (32, 1):
                pool, alone = await turns(node, limit, items, count)
                ratios = [a / b for a, b in zip(pool, alone, strict=True)]
                figures[f"worker_{items}_an_envelope_per_s"] = round(median(pool), 1)
                figures[f"in_process_beside_{items}_per_s"] = round(median(alone), 1)
                figures[f"ratio_{items}"] = round(median(ratios), 3)
                figures[f"ratio_{items}_by_turn"] = [round(r, 3) for r in ratios]
    return figures
