"""One worker with the ResNet and a deep queue against the same SavedModel in process.

Envelopes of 32 requests, as an agent sends when a backlog drains, and of one. The
model in process is measured before and after, and the better of the two counts.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import aio_pika
import msgpack
import numpy as np
from aio_pika.abc import AbstractIncomingMessage

from benchmarks.limits import Limit, arguments, progress, report
from benchmarks.path import process
from broker.codec import encode
from broker.messages import Priority, Reason, Request, Tensor
from broker.node import Node
from broker.topics import as_routing_key, requests, results
from lifecycle.clock import SystemClock
from lifecycle.logs import configure_logs

EXAMPLE: Final = Path(__file__).parent.parent / "examples" / "fashion"
MODELS: Final = EXAMPLE / "cloud"
IMAGES: Final = EXAMPLE / "images" / "test1000.npz"
AGENT: Final = "bench"
BACKLOG: Final = 12_800
SINGLES: Final = 6_400
MOST_S: Final = 120.0


async def in_process() -> dict[str, float]:
    """Images a second by batch size, in a process of its own."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.in_process",
        str(MODELS / "fashion" / "1"),
        str(IMAGES),
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(MOST_S):
        printed, _ = await child.communicate()
    rates: dict[str, float] = json.loads(printed.splitlines()[-1])
    return rates


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


async def drain(node: Node, count: int, items: int) -> float:
    """Requests a second that one worker answers from a queue filled before it came."""
    connection = await aio_pika.connect(node.amqp_url("admin"))
    async with connection:
        channel = await connection.channel()
        topic = await channel.get_exchange("amq.topic")
        inbox = await channel.declare_queue(exclusive=True)
        await inbox.bind(topic, as_routing_key(results(AGENT)))
        key = as_routing_key(requests(AGENT, "fashion", Priority.NORM))
        bodies = envelopes(count, items)
        for start in range(0, len(bodies), 200):
            await asyncio.gather(
                *(
                    topic.publish(aio_pika.Message(each, delivery_mode=2), key)
                    for each in bodies[start : start + 200]
                )
            )
        arrivals: list[tuple[float, int]] = []
        done = asyncio.Event()
        seen = 0

        async def on_result(message: AbstractIncomingMessage) -> None:
            nonlocal seen
            number = len(msgpack.unpackb(message.body)["items"])
            seen += number
            arrivals.append((time.perf_counter(), number))
            if seen >= count:
                done.set()

        await inbox.consume(on_result, no_ack=True)
        async with process(
            "cloud_worker",
            "run",
            "--amqp-url",
            node.amqp_url("worker"),
            "--models",
            str(MODELS),
            "--log-level",
            "warning",
        ):
            async with asyncio.timeout(MOST_S):
                await done.wait()
    # From the first result on: the worker's start is not its throughput.
    first_at, first_number = arrivals[0]
    return (seen - first_number) / (arrivals[-1][0] - first_at)


async def measure() -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="ovs-") as folder:
        progress("the model in process")
        before = await in_process()
        async with Node(Path(folder), agents=(AGENT,), models=("fashion",)) as node:
            progress(f"{BACKLOG} requests, 32 an envelope")
            backlog = await drain(node, BACKLOG, 32)
            progress(f"{SINGLES} requests, one an envelope")
            singles = await drain(node, SINGLES, 1)
        progress("the model in process again")
        after = await in_process()
    rates = {size: max(before[size], after[size]) for size in before}
    best = max(rates, key=lambda size: rates[size])
    return {
        "in_process_per_s": {size: round(rate, 1) for size, rate in rates.items()},
        "in_process_best_batch": int(best),
        "in_process_best_per_s": round(rates[best], 1),
        "worker_32_an_envelope_per_s": round(backlog, 1),
        "worker_1_an_envelope_per_s": round(singles, 1),
        "ratio_32": round(backlog / rates[best], 3),
        "ratio_1": round(singles / rates[best], 3),
    }


def main() -> int:
    chosen = arguments(__doc__ or "")
    configure_logs("error")
    figures = asyncio.run(measure())
    limits = [
        Limit("backlog_over_in_process", figures["ratio_32"], 0.6, at_least=True),
    ]
    return report(figures, limits, as_json=chosen.json)


if __name__ == "__main__":
    sys.exit(main())
