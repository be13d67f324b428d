"""Malformed messages by the ten thousand, and payloads at the size limit."""

from __future__ import annotations

import asyncio
import io
import json
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import aio_pika
import msgpack
import pytest
from PIL import Image

from broker.codec import MAX_ENVELOPE_BYTES, encode, pack, seal_envelope
from broker.messages import Medium, Priority, Request, Result, Status
from broker.node import Node
from broker.topics import as_routing_key, requests
from broker.topology import TOPIC_EXCHANGE
from tests.integration.cloud_worker.pool import (
    Agent,
    WorkerProcess,
    repository,
    request,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

FLOOD = 10_000
GOOD = 100
AT_ONCE = 1000
LIMIT_BYTES = 15 * 1024 * 1024


def malformed(model: str) -> Sequence[bytes]:
    """One of each kind; nobody can be told of any but the last two."""
    whole = encode(request("whole", model))
    poor = msgpack.packb({"id": "poor", "device": "cam1"})
    return (
        b"",
        b"noise",
        b"\xc1" * 300,
        whole[:-20],
        whole + b"\x00",
        msgpack.packb([1, 2, 3]),
        msgpack.packb({"v": 7, "kind": "req", "items": []}),
        msgpack.packb({"v": 1, "kind": "req", "items": [b"\xc1", 5, {}]}),
        msgpack.packb({"v": 1, "kind": "req", "items": [[] for _ in range(100)]}),
        encode(Result(id="r", device="d", model=model, status=Status.OK))[:-1],
        seal_envelope(Request, [msgpack.packb({"id": "Not An Id"})]),
        b"\x91" * 5000,
        seal_envelope(Request, [poor]),
        msgpack.packb({"v": 7, "kind": "req", "items": [poor]}),
    )


async def flood(node: Node, model: str) -> int:
    """Send good requests among many malformed messages; says how many those were."""
    kinds = malformed(model)

    def bodies() -> Iterator[bytes]:
        every = FLOOD // GOOD
        for number in range(FLOOD):
            if number % every == 0:
                yield encode(request(f"good-{number // every}", model, 1.0))
            yield kinds[number % len(kinds)]

    key = as_routing_key(requests("agent-1", model, Priority.NORM))
    connection = await aio_pika.connect(node.amqp_url("worker"))
    async with connection:
        channel = connection.channel(publisher_confirms=False)
        await channel.initialize()
        outlet = await channel.get_underlay_channel()
        sent = list(bodies())
        for start in range(0, len(sent), AT_ONCE):
            async with asyncio.TaskGroup() as group:
                for body in sent[start : start + AT_ONCE]:
                    group.create_task(
                        outlet.basic_publish(
                            body, exchange=TOPIC_EXCHANGE, routing_key=key
                        )
                    )
        await channel.close()
    return FLOOD


def resident_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


async def test_a_flood_of_malformed_messages_costs_the_good_ones_nothing(
    rabbit: Node, tmp_path: Path
) -> None:
    models = repository(tmp_path, it_flood="line_lite")
    url = rabbit.amqp_url("worker")
    async with Agent(rabbit) as agent, WorkerProcess(url, models) as worker:
        await worker.ready()
        before_mb = resident_mb(worker.pid)
        sent = await flood(rabbit, "it-flood")
        await agent.all_results(f"good-{number}" for number in range(GOOD))
        for number in range(GOOD):
            assert (await agent.result(f"good-{number}")).status is Status.OK
        # The last to be sent: what came before it has been taken.
        await agent.ask(request("after", "it-flood"))
        assert (await agent.result("after")).status is Status.OK
        assert resident_mb(worker.pid) < before_mb + 100
        worker.signal(signal.SIGTERM)
        assert await worker.ended() == 0
    # Some every second, however long it takes, and never one for each.
    assert len(worker.said) < FLOOD / 10
    ledger = next(
        json.loads(line) for line in reversed(worker.said) if '"ledger"' in line
    )
    assert ledger["mismatches"] == 0
    assert ledger["answered"] == GOOD + 1
    assert (
        ledger["failed_unreadable"]
        + ledger["deliveries_buried"]
        + ledger["deliveries_noise_dropped"]
    ) == sent
    told = sum(number % 14 in {12, 13} for number in range(FLOOD))
    assert ledger["failed_unreadable"] == told
    assert ledger["deliveries_buried"] == 100
    assert any('"event_of": "delivery rejected"' in line for line in worker.said)


async def test_a_payload_at_the_limit_is_answered_and_one_above_costs_nothing(
    rabbit: Node, tmp_path: Path
) -> None:
    models = repository(tmp_path, it_large="bright")
    url = rabbit.amqp_url("worker")
    image = io.BytesIO()
    Image.new("L", (20, 30), 255).save(image, "PNG")

    def sized(id_: str, size_bytes: int) -> Request:
        # What follows the image's end is read over.
        data = image.getvalue().ljust(size_bytes, b"\x00")
        medium = Medium(media_type="image/png", data=data)
        return request(id_, "it-large", tensors=None, medium=medium)

    agents = Agent(rabbit, keepalive_s=120)
    async with agents as agent, WorkerProcess(url, models) as worker:
        await worker.ready()
        over = seal_envelope(Request, [pack(sized("over", MAX_ENVELOPE_BYTES))])
        await agent.send(requests("agent-1", "it-large", Priority.NORM), over)
        for number in range(2):
            await agent.ask(sized(f"limit-{number}", LIMIT_BYTES))
        for number in range(2):
            result = await agent.result(f"limit-{number}")
            assert (result.status, result.label) == (Status.OK, "bright")
        assert "over" not in agent.results
        (said,) = [line for line in worker.said if "delivery rejected" in line]
        assert f"over the limit of {MAX_ENVELOPE_BYTES}" in said
