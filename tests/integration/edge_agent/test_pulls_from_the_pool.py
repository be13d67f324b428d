"""Agents that pull from the pool over a real RabbitMQ, alone and as a wave."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from broker import topics, topology
from broker.amqp.delivery import Delivery
from broker.amqp.link import AmqpLink
from broker.link import LinkDown
from broker.messages import UpdatePolicy
from broker.mqtt.link import MqttLink
from broker.mqtt.target import MqttTarget
from broker.node import Node
from bundle import layout
from bundle.seal import Seal
from bundle.source import NotThere, Piece, Source, SourceUnavailable
from bundle.tree_source import TreeSource
from cloud_worker.core.shared_chunks import SharedChunks
from cloud_worker.loops.updates import PREFETCH, Updates
from edge_agent.adapters.day_file import DayFile
from edge_agent.adapters.mqtt_source import MqttSource
from edge_agent.loops.fetching import FetchSettings
from edge_agent.loops.metering import Metering
from edge_agent.loops.pulling import Puller, PullSettings
from tests.conftest import AGENTS
from tests.integration.broker.links import quick, running
from tests.registries import Registry, Wayward, model_bytes, sha256_of
from tests.waiting import until

pytestmark = pytest.mark.integration

CHUNK_BYTES = 16 * 1024
T = TypeVar("T")
MODEL = model_bytes(20 * CHUNK_BYTES)


async def within(awaitable: Awaitable[T]) -> T:
    """What it gives, in time."""
    async with asyncio.timeout(30):
        return await awaitable


class Pool:
    """The part of a worker that serves updates, and what it published where."""

    def __init__(self, rabbit: Node, registry: Source, **more: Any) -> None:
        self.published: Counter[str] = Counter()
        self.link = AmqpLink(
            rabbit.amqp_url("worker"),
            name="pool",
            queues=topology.standing_queues(),
            consume={topology.GET_QUEUE: PREFETCH},
            on_delivery=self._take,
            backoff=quick(),
        )
        self.updates = Updates(registry, self._publish, **more)

    async def _take(self, delivery: Delivery) -> None:
        await self.updates.take(delivery)

    async def _publish(
        self, routing_key: str, body: bytes, *, timeout_s: float
    ) -> None:
        self.published[routing_key] += 1
        await self.link.publish(routing_key, body, timeout_s=timeout_s)

    @property
    def alone(self) -> int:
        """Answers to one agent."""
        return sum(n for key, n in self.published.items() if key.startswith("e1."))

    @property
    def shared(self) -> int:
        """Answers to a wave."""
        return sum(n for key, n in self.published.items() if key.startswith("w1."))


@dataclass
class PullingAgent:
    """An agent's link and its source."""

    name: str
    link: MqttLink
    source: MqttSource

    def puller(self, folder: Path) -> Puller:
        parts = folder / self.name
        parts.mkdir()
        fetch = FetchSettings(
            window=4, stall_s=20.0, shared_first_s=0.3, shared_silent_s=0.2
        )
        return Puller(
            [self.source],
            parts,
            metering=Metering(
                DayFile(parts / "day.json"), local_now_s=lambda: 86_400.0
            ),
            rng=random.Random(self.name),
            settings=PullSettings(fetch),
            sharing=self.source,
        )


@asynccontextmanager
async def agent(
    rabbit: Node, name: str, *, timeout_s: float = 10.0
) -> AsyncIterator[PullingAgent]:
    def hear(topic: str, payload: bytes) -> None:
        source.on_message(topic, payload)

    link = MqttLink(
        MqttTarget.from_url(rabbit.mqtt_url(name)),
        client_id=name,
        subscriptions=[topics.downlink(name)],
        on_message=hear,
        backoff=quick(),
    )
    source = MqttSource(agent=name, link=link, timeout_s=timeout_s, tries=2)
    async with running(link.run):
        await within(link.wait_up())
        yield PullingAgent(name, link, source)


@asynccontextmanager
async def pooled(rabbit: Node, source: Source, **more: Any) -> AsyncIterator[Pool]:
    pool = Pool(rabbit, source, **more)
    async with running(pool.link.run):
        await within(pool.link.wait_up())
        yield pool


async def pull(puller: Puller, seal: Seal, *, shared: bool = False) -> Path:
    return await within(
        puller.pull(
            seal, None, policy=UpdatePolicy(shared=shared), superseded=lambda: False
        )
    )


async def test_files_are_read_by_path_and_those_that_are_not_for_all_by_their_agent(
    rabbit: Node, tmp_path: Path
) -> None:
    registry = Registry(tmp_path)
    packed, seal = registry.publish("1", MODEL, chunk_bytes=CHUNK_BYTES)
    registry.tree.write("desired/agent-1", b"for agent-1 only")
    registry.tree.write("private/keys", b"nobody's business")
    async with (
        pooled(rabbit, TreeSource(registry.tree)),
        agent(rabbit, "agent-1") as first,
        agent(rabbit, "agent-2") as second,
    ):
        blob = layout.blob(seal.sha256)
        piece = await within(first.source.read(blob, 100, 1000))
        assert piece == Piece(packed.read_bytes()[100:1100], seal.size_bytes)
        end = await within(first.source.read(blob, seal.size_bytes - 10, 1000))
        assert end.data == packed.read_bytes()[-10:]
        own = await within(first.source.read("desired/agent-1", 0, 1000))
        assert own.data == b"for agent-1 only"
        for nowhere in ("desired/agent-1", "desired/agent-9", "private/keys"):
            with pytest.raises(NotThere, match="is not in the registry"):
                await within(second.source.read(nowhere, 0, 1000))


async def test_an_agent_pulls_from_the_pool(rabbit: Node, tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    packed, seal = registry.publish("1", MODEL, chunk_bytes=CHUNK_BYTES)
    async with (
        pooled(rabbit, TreeSource(registry.tree)) as pool,
        agent(rabbit, "agent-1") as puller,
    ):
        got = await pull(puller.puller(tmp_path), seal)
        assert got.read_bytes() == packed.read_bytes()
        # What the pool of another test had not acknowledged may come to this one.
        assert pool.alone >= len(seal.chunks)
        assert pool.shared == 0


async def test_workers_share_the_chunks_of_a_pull_by_what_they_take(
    rabbit: Node, tmp_path: Path
) -> None:
    registry = Registry(tmp_path)
    packed, seal = registry.publish("1", MODEL, chunk_bytes=CHUNK_BYTES)
    async with (
        pooled(rabbit, TreeSource(registry.tree)) as one,
        pooled(rabbit, TreeSource(registry.tree)) as other,
        agent(rabbit, "agent-1") as puller,
    ):
        got = await pull(puller.puller(tmp_path), seal)
        assert got.read_bytes() == packed.read_bytes()
        assert one.alone + other.alone >= len(seal.chunks)
        assert min(one.alone, other.alone) > 0


async def test_a_wave_shares_one_transfer_and_each_verifies_for_itself(
    rabbit: Node, tmp_path: Path
) -> None:
    registry = Registry(tmp_path)
    _, seal = registry.publish("1", MODEL, chunk_bytes=CHUNK_BYTES)
    async with (
        pooled(rabbit, TreeSource(registry.tree)) as pool,
        agent(rabbit, AGENTS[0]) as a,
        agent(rabbit, AGENTS[1]) as b,
        agent(rabbit, AGENTS[2]) as c,
    ):
        async with asyncio.TaskGroup() as tasks:
            pulls = [
                tasks.create_task(pull(each.puller(tmp_path), seal, shared=True))
                for each in (a, b, c)
            ]
        for each in pulls:
            assert sha256_of(each.result()) == seal.sha256
        # One transfer for the three; a chunk that one missed came to that one.
        assert pool.shared == len(seal.chunks)
        assert pool.alone <= len(seal.chunks) // 2
        # And once it is over nobody hears any more: the next wave's is not theirs.
        assert not a.link._also


async def test_who_asks_for_what_a_wave_has_heard_is_answered_alone(
    rabbit: Node, tmp_path: Path
) -> None:
    registry = Registry(tmp_path)
    _, seal = registry.publish("1", MODEL, chunk_bytes=CHUNK_BYTES)
    told = SharedChunks(fresh_s=0.0)
    for index in range(len(seal.chunks)):
        offset = index * CHUNK_BYTES
        length = min(CHUNK_BYTES, seal.size_bytes - offset)
        told.claim((layout.blob(seal.sha256), offset, length), time.monotonic())
    async with (
        pooled(rabbit, TreeSource(registry.tree), shared=told) as pool,
        agent(rabbit, AGENTS[3]) as late,
    ):
        got = await pull(late.puller(tmp_path), seal, shared=True)
        assert sha256_of(got) == seal.sha256
        assert pool.shared == 0
        assert told.repaired == len(seal.chunks)


async def test_what_is_wrong_is_told_to_who_asked_and_not_to_the_wave(
    rabbit: Node, tmp_path: Path
) -> None:
    registry = Registry(tmp_path)
    async with (
        pooled(rabbit, TreeSource(registry.tree)) as pool,
        agent(rabbit, "agent-1") as asker,
    ):
        await within(asker.source.ask_shared(layout.blob("0" * 64), 0, 100, 0.0))
        with pytest.raises(NotThere):
            await within(asker.source.read(layout.blob("0" * 64), 0, 100))
        assert pool.shared == 0
        # Only blobs are shared: on a topic for metadata nobody may be made to listen.
        await within(asker.source.ask_shared("metadata/timestamp.json", 0, 100, 0.0))
        with pytest.raises(NotThere):
            await within(asker.source.read("metadata/timestamp.json", 0, 100))
        assert pool.shared == 0


async def test_a_pool_whose_disk_hangs_says_that_it_is_busy_and_for_how_long(
    rabbit: Node, tmp_path: Path
) -> None:
    async def hangs(_path: str, _offset: int, _length: int) -> Piece | None:
        await asyncio.Event().wait()
        return None

    registry = Registry(tmp_path)
    disk = Wayward("disk", TreeSource(registry.tree), hangs)
    async with (
        pooled(rabbit, disk, read_s=0.3),
        agent(rabbit, "agent-1") as asker,
    ):
        with pytest.raises(SourceUnavailable, match="ask again") as said:
            await within(asker.source.read(layout.blob("0" * 64), 0, 100))
        assert said.value.retry_after_s


async def test_a_pool_that_is_not_there_is_told_in_time(rabbit: Node) -> None:
    async with agent(rabbit, "agent-4", timeout_s=0.2) as asker:
        with pytest.raises(SourceUnavailable, match="is a worker with a registry"):
            await within(asker.source.read("metadata/timestamp.json", 0, 10))


async def test_without_a_link_there_is_nothing_to_wait_for(rabbit: Node) -> None:
    async with agent(rabbit, "agent-4") as asker:
        pass
    with pytest.raises(SourceUnavailable, match="no link"):
        await within(asker.source.read("metadata/timestamp.json", 0, 10))
    with pytest.raises(SourceUnavailable, match="no link"):
        async with asker.source.hearing("0" * 64, lambda _offset, _data: None):
            pass


async def test_what_a_wave_hears_is_heard_after_a_lost_connection_too(
    rabbit: Node, tmp_path: Path
) -> None:
    registry = Registry(tmp_path)
    packed, seal = registry.publish("1", MODEL, chunk_bytes=CHUNK_BYTES)
    heard: dict[int, bytes] = {}
    async with (
        pooled(rabbit, TreeSource(registry.tree)),
        agent(rabbit, "agent-3") as listener,
        agent(rabbit, "agent-4") as asker,
        listener.source.hearing(seal.sha256, heard.__setitem__),
    ):
        # Another with its name takes its session, and is gone again.
        async with agent(rabbit, "agent-3"):
            await until(lambda: not listener.link.up)
        await within(listener.link.wait_up())
        await until(lambda: listener.link.up and bool(listener.link._also))
        await within(
            asker.source.ask_shared(layout.blob(seal.sha256), 0, CHUNK_BYTES, 9.0)
        )
        await until(lambda: heard)
        assert heard == {0: packed.read_bytes()[:CHUNK_BYTES]}


async def test_a_topic_that_is_not_granted_costs_one_connection_and_no_more(
    rabbit: Node,
) -> None:
    async with agent(rabbit, "agent-1") as asker:
        with pytest.raises(LinkDown):
            await within(asker.link.hear("e1/agent-2/dn/blob"))
        await within(asker.link.wait_up())
        await within(asker.link.hear(topics.shared_blobs("0" * 64)))
        await within(asker.link.unhear(topics.shared_blobs("0" * 64)))
        assert asker.link.up
