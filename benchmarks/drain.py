"""Draining a deep outbox: in envelopes, against one message a request; memory flat.

The outbox is filled beforehand; a daemon of its own drains it through a private
RabbitMQ, and a consumer that does no work answers. The agent's memory is looked at
from the moment it is ready.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import aio_pika
import msgpack
from aio_pika.abc import AbstractIncomingMessage

from benchmarks.limits import Limit, progress, report
from benchmarks.local import cpu_s, resident_mb, wait_ready
from benchmarks.path import process
from broker.codec import WIRE_VERSION, pack
from broker.messages import Priority, Reason, Request, Tensor
from broker.node import Node
from broker.topics import as_routing_key, results
from edge_agent.adapters.spill_file import open_table
from edge_agent.adapters.spill_rows import open_row
from edge_agent.adapters.spill_table import ENDED
from edge_agent.core.delivery import Channel, Spill
from lifecycle.clock import SystemClock
from lifecycle.logs import configure_logs

AGENT: Final = "ours"
MODEL: Final = "copy"
PAYLOAD_BYTES: Final = 1024
ROWS: Final = 100_000
ONE_BY_ONE_ROWS: Final = 5_000
ENVELOPE_ITEMS: Final = 32
FILL_ROWS: Final = 2_000
LOOK_EVERY_S: Final = 0.05
MOST_S: Final = 600.0


def fill(path: Path, count: int) -> None:
    """An outbox with `count` requests that were accepted while there was no cloud."""
    now_ms = float(SystemClock().wall_ms())
    path.parent.mkdir()
    table = open_table(path)
    for first in range(0, count, FILL_ROWS):
        some = range(first, min(count, first + FILL_ROWS))
        with table.transaction("NORMAL"):
            table.insert_all([open_row(_spill(number, now_ms)) for number in some])
    table.close()


def _spill(number: int, now_ms: float) -> Spill:
    deadline_ms = now_ms + 3_600_000 + number
    payload = Tensor(
        dtype="uint8", shape=[1, PAYLOAD_BYTES], data=os.urandom(PAYLOAD_BYTES)
    )
    request = Request(
        id=f"r{number}",
        device="cam",
        model=MODEL,
        reason=Reason.FORCED,
        expires_at_ms=round(deadline_ms),
        tensors={"payload": payload},
    )
    return Spill(
        device="cam",
        id=request.id,
        model=MODEL,
        priority=Priority.NORM,
        reason=request.reason,
        channel=Channel.CALL,
        encoding="msgpack",
        request=pack(request),
        accepted_ms=now_ms,
        deadline_ms=deadline_ms,
        due_ms=now_ms,
    )


async def answer_everything(url: str) -> None:
    """The pool without its work: each envelope of requests becomes one of results."""
    connection = await aio_pika.connect(url)
    async with connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=200)
        topic = await channel.get_exchange("amq.topic")
        queue = await channel.get_queue(f"infer.{MODEL}.{Priority.NORM.value}")
        to = as_routing_key(results(AGENT))

        async def answer(message: AbstractIncomingMessage) -> None:
            requests = map(msgpack.unpackb, msgpack.unpackb(message.body)["items"])
            answers = [msgpack.packb(_result(each)) for each in requests]
            body = msgpack.packb({"v": WIRE_VERSION, "kind": "res", "items": answers})
            async with asyncio.timeout(60):
                await topic.publish(aio_pika.Message(body, delivery_mode=2), to)
                await message.ack()

        await queue.consume(answer)
        sys.stdout.write("READY\n")
        sys.stdout.flush()
        await asyncio.get_running_loop().create_future()


def _result(request: dict[str, Any]) -> dict[str, Any]:
    named = {name: request[name] for name in ("id", "device", "model")}
    return {**named, "status": "ok", "label": "done", "server_time_ms": 0}


@contextlib.contextmanager
def daemon(folder: Path, url: str, items: int) -> Iterator[subprocess.Popen[str]]:
    """`overspill-agent run` on that folder, ready."""
    settings = {
        "AGENT_ID": AGENT,
        "STATE_DIR": folder,
        "CLOUD_URL": url,
        "LOCAL": "false",
        "ENVELOPE_ITEMS": items,
        "RESEND_AFTER_S": 120,
    }
    ours = {f"OVERSPILL_AGENT_{name}": str(value) for name, value in settings.items()}
    with subprocess.Popen(
        [sys.executable, "-m", "edge_agent", "run"],
        env={**os.environ, **ours},
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        try:
            wait_ready(running, time.perf_counter())
            yield running
        finally:
            running.terminate()


def ended(path: Path) -> int:
    """How many have their outcome."""
    uri = path.as_uri() + "?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=30)) as db:
        (count,) = db.execute(
            "SELECT coalesce(sum(count), 0) FROM ledger WHERE entry = ?", (ENDED,)
        ).fetchone()
    return int(count)


def peak_mb(pid: int) -> float:
    """The most memory that a process has ever had resident."""
    fields = Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1].split()
    return int(fields[0]) / 1024


async def drain(node: Node, folder: Path, count: int, items: int) -> dict[str, float]:
    """Fill an outbox and watch it drain."""
    path = folder / "outbox.db"
    progress(f"filling an outbox with {count} requests")
    await asyncio.to_thread(fill, path, count)
    progress(f"draining it, {items} an envelope")
    with daemon(folder, node.mqtt_url(AGENT), items) as running:
        started, before_mb = time.perf_counter(), resident_mb(running.pid)
        done = 0
        async with asyncio.timeout(MOST_S):
            while done < count:
                await asyncio.sleep(LOOK_EVERY_S)
                done = await asyncio.to_thread(ended, path)
        taken_s = time.perf_counter() - started
        return {
            "per_s": count / taken_s,
            "grown_mb": peak_mb(running.pid) - before_mb,
            "cpu_us_a_request": cpu_s(running.pid) / count * 1e6,
        }


async def measure(rows: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="ovs-") as name:
        folder = Path(name)
        progress("starting a private RabbitMQ and a consumer that answers")
        node = Node(folder / "rabbit", agents=(AGENT,), models=(MODEL,))
        async with (
            node,
            process("benchmarks.drain", "--answer", node.amqp_url("admin")),
        ):
            singly = await drain(node, folder / "one", min(rows, ONE_BY_ONE_ROWS), 1)
            together = await drain(node, folder / "many", rows, ENVELOPE_ITEMS)
    return {
        "rows": rows,
        "payload_bytes": PAYLOAD_BYTES,
        "envelope_items": ENVELOPE_ITEMS,
        "one_by_one_per_s": round(singly["per_s"], 1),
        "drain_per_s": round(together["per_s"], 1),
        "ratio": round(together["per_s"] / singly["per_s"], 3),
        "one_by_one_cpu_us": round(singly["cpu_us_a_request"], 1),
        "drain_cpu_us": round(together["cpu_us_a_request"], 1),
        "grown_mb": round(together["grown_mb"], 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print figures as JSON")
    parser.add_argument("--rows", type=int, default=ROWS, help="how deep it is")
    parser.add_argument("--answer", metavar="URL", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    configure_logs("error")
    if chosen.answer is not None:
        asyncio.run(answer_everything(chosen.answer))
    figures = asyncio.run(measure(chosen.rows))
    limits = [
        Limit("drain_over_one_by_one", figures["ratio"], 5.0, at_least=True),
        Limit("agent_grown_mb", figures["grown_mb"], 64.0),
    ]
    return report(figures, limits, as_json=chosen.json)


if __name__ == "__main__":
    sys.exit(main())
