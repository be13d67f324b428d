"""The network between the cloud's broker and everybody else goes bad.

Agent and worker reach RabbitMQ through a road each (`tests.faults.proxy`); devices
and their Mosquitto are on the agent's own side and notice nothing.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tests.faults.lossy_link import FAR, NEAR, LossyLink, why_not
from tests.faults.proxy import DEAD, GOOD, LOOPBACK, Proxy, Road
from tests.faults.row import Row
from tests.faults.stage import Gateway, Stage

KEEPALIVE_S = 10
BACK_WITHIN_S = 1.5 * KEEPALIVE_S
SLOW_DRAIN_S = 120.0
WORKER_CONNECTIONS = 2  # one consumes, one publishes


@dataclass
class Roads:
    """One agent and one worker, each on a road of its own."""

    gateway: Gateway
    agent: Proxy
    worker: Proxy

    def make(self, road: Road, *, coming: bool = True) -> None:
        """Change both roads."""
        self.agent.make(road, coming=coming)
        self.worker.make(road, coming=coming)


@asynccontextmanager
async def roads(
    stage: Stage, *, near: str = LOOPBACK, far: str = LOOPBACK
) -> AsyncIterator[Roads]:
    """The usual stage, but for the roads: they listen at `near` and are reached at `far`."""
    info = stage.node.info
    async with (
        Proxy(info.mqtt_port, listen_host=near, seed=stage.seed) as agent,
        Proxy(info.amqp_port, listen_host=near, seed=stage.seed) as worker,
    ):
        amqp_url = stage.node.amqp_url("worker")
        await stage.worker(
            "w1", amqp_url=_moved(amqp_url, info.amqp_port, far, worker.port)
        )
        mqtt_url = stage.node.mqtt_url("agent-1")
        gateway = await stage.gateway(
            "agent-1",
            cloud_url=_moved(mqtt_url, info.mqtt_port, far, agent.port),
            keepalive_s=KEEPALIVE_S,
        )
        for number in (1, 2):
            await stage.device(gateway, f"cam{number}")
        await stage.local_stream(gateway)
        await stage.until_status(gateway, lambda status: status["cloud"]["up"])
        yield Roads(gateway, agent, worker)


def _moved(url: str, port: int, host: str, to: int) -> str:
    return url.replace(f"@{LOOPBACK}:{port}", f"@{host}:{to}")


async def standing_die(bad: Road, stage: Stage) -> None:
    """What is connected goes dead without a word; what connects anew works."""
    async with roads(stage) as both:
        await stage.load(stage.n(20))
        load = stage.background(stage.load(stage.n(400), rate=20))
        agents, workers = both.agent.accepted, both.worker.accepted
        loop = asyncio.get_running_loop()
        async with stage.fault("standing connections are dead"):
            cut_s = loop.time()
            both.make(bad, coming=False)
            async with asyncio.timeout(BACK_WITHIN_S):
                await stage.until(lambda: both.agent.accepted > agents, 60)
                await stage.until_status(both.gateway, lambda said: said["cloud"]["up"])
                await stage.until(
                    lambda: both.worker.accepted >= workers + WORKER_CONNECTIONS, 60
                )
        stage.note_fault(f"back after {loop.time() - cut_s:.1f} s")
        await load
        await stage.until_ended()


async def road_gone(stage: Stage) -> None:
    """Nothing gets through for longer than both sides wait; then all is good."""
    async with roads(stage) as both:
        await stage.load(stage.n(20))
        async with stage.fault("no road"):
            both.make(DEAD)
            await stage.load(stage.n(200), rate=20)
            # The fault itself: it is noticed in the meantime.
            await asyncio.sleep(2.0 * KEEPALIVE_S * stage.scale)
            await stage.until_status(
                both.gateway, lambda said: said["outbox"]["open"] >= 2 * stage.n(200)
            )
            both.make(GOOD)
        await stage.until_ended()


async def resets(stage: Stage) -> None:
    """Every connection is reset, again and again."""
    async with roads(stage) as both:
        load = stage.background(stage.load(stage.n(300), rate=30))
        async with stage.fault("resets"):
            before = both.agent.accepted
            count = stage.n(12)
            for _ in range(count):
                # The fault itself: connections of any age.
                await asyncio.sleep(stage.random.uniform(0.2, 1.5))
                both.agent.reset()
                both.worker.reset()
            made = both.agent.accepted - before
            assert made <= count + 1, f"{made} connections for {count} resets"
        await load
        await stage.until_ended()


async def bad_road(bad: Road, requests: int, stage: Stage) -> None:
    """The road is bad all the time, for what stands and what comes."""
    async with roads(stage) as both:
        async with stage.fault(f"{bad}"):
            both.make(bad)
            await stage.load(stage.n(requests), rate=10)
            await asyncio.sleep(10.0 * stage.scale)  # the fault itself
            # It goes on, bad as it is: that is what is waited for here.
            await stage.until(
                lambda: all(device.ended for device in stage.devices), SLOW_DRAIN_S
            )
            both.make(GOOD)
        await stage.until_ended(SLOW_DRAIN_S)


async def delay(stage: Stage) -> None:
    """Two seconds each way: slow, but connections must stay."""
    async with roads(stage) as both:
        await stage.load(stage.n(5))
        before = both.agent.accepted
        async with stage.fault("2 s each way"):
            both.make(Road(delay_s=2.0))
            await stage.load(stage.n(100), rate=20)
            await stage.until(
                lambda: not any(device.open for device in stage.devices), SLOW_DRAIN_S
            )
            assert both.agent.accepted == before, "a slow road was taken for a dead one"
            both.agent.reset()
            await stage.load(stage.n(20))
            await stage.until(
                lambda: not any(device.open for device in stage.devices), SLOW_DRAIN_S
            )
        await stage.until_ended()


async def packet_loss(stage: Stage) -> None:
    """Packets are really lost, each way, at both roads."""
    async with (
        LossyLink(delay_s=0.02, seed=stage.seed) as link,
        roads(stage, near=NEAR, far=FAR),
    ):
        async with stage.fault("10 % of packets lost"):
            link.loss = 0.1
            await stage.load(stage.n(300), rate=20)
            await asyncio.sleep(10.0 * stage.scale)  # the fault itself
            await stage.until(
                lambda: all(device.ended for device in stage.devices), SLOW_DRAIN_S
            )
            link.loss = 0.0
        assert link.lost
        await stage.until_ended(SLOW_DRAIN_S)


_BACK = f"agent and worker are back within 1.5 × keepalive ({BACK_WITHIN_S:g} s)"
_NOTHING_LOST = "nothing lost, local answers go on"

ROWS: tuple[Row, ...] = (
    Row(
        name="network-half-open",
        fault="standing connections forward nothing and never close",
        must_hold=f"{_BACK}; {_NOTHING_LOST}",
        run=functools.partial(standing_die, DEAD),
    ),
    Row(
        name="network-cut-upward",
        fault="standing connections carry nothing to RabbitMQ, but from it",
        must_hold=f"{_BACK}; {_NOTHING_LOST}",
        run=functools.partial(standing_die, Road(up=False)),
    ),
    Row(
        name="network-cut-downward",
        fault="standing connections carry nothing from RabbitMQ, but to it",
        must_hold=f"{_BACK}; {_NOTHING_LOST}",
        run=functools.partial(standing_die, Road(down=False)),
    ),
    Row(
        name="network-gone",
        fault="no byte gets through, for two keepalives and longer",
        must_hold=f"the outbox grows and drains after; {_NOTHING_LOST}",
        run=road_gone,
    ),
    Row(
        name="network-resets",
        fault="every connection is reset, again and again",
        must_hold=f"one connection for each reset; {_NOTHING_LOST}",
        run=resets,
        fast=True,
    ),
    Row(
        name="network-delay",
        fault="2 s of delay each way",
        must_hold=f"connections stay; {_NOTHING_LOST}",
        run=delay,
        timeout_s=300.0,
    ),
    Row(
        name="network-stalls",
        fault="loss as TCP shows it: a fifth of all chunks stalls, a few reset",
        must_hold=f"progress all the while; {_NOTHING_LOST}",
        run=functools.partial(
            bad_road, Road(stalls=0.2, stall_s=0.5, resets=0.01), 300
        ),
        timeout_s=300.0,
    ),
    Row(
        name="network-narrow",
        fault="40 kB a second each way, less than is asked of it",
        must_hold=f"progress all the while; {_NOTHING_LOST}",
        run=functools.partial(bad_road, Road(bytes_per_s=40_000), 300),
        timeout_s=300.0,
    ),
    *(
        [
            Row(
                name="network-packet-loss",
                fault="10 % of all packets lost on a network device, 20 ms each way",
                must_hold=f"progress all the while; {_NOTHING_LOST}",
                run=packet_loss,
                timeout_s=300.0,
            )
        ]
        if why_not() is None
        else []
    ),
)
