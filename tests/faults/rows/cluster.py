"""Three RabbitMQ nodes: one is lost, then two, then all are there again."""

from __future__ import annotations

import asyncio

from tests.faults.cluster import Cluster
from tests.faults.row import Row
from tests.faults.stage import AGENTS, MODELS, Stage

HEALED_S = 180.0
# The MQTT plugin of 3.10 that finds no majority of its own when it starts waits for one
# for 100 s, and takes no connection before.
COMES_BACK_S = 240.0


async def nodes_lost(stage: Stage) -> None:
    folder = stage.folder / "cluster"
    async with Cluster(folder, agents=AGENTS, models=MODELS) as cluster:
        await stage.worker("w1", amqp_url=cluster.amqp_url("worker"))
        gateway = await stage.gateway("agent-1", cloud_url=cluster.mqtt_url("agent-1"))
        for number in (1, 2):
            await stage.device(gateway, f"cam{number}")
        await stage.local_stream(gateway)
        await stage.load(stage.n(100), rate=50)

        async with stage.fault("one node lost"):
            # The one that agent and worker are connected to.
            await cluster.nodes[0].kill()
            await stage.load(stage.n(200), rate=50)
            await stage.until(
                lambda: not any(device.open for device in stage.devices), 60
            )
        async with stage.fault("two nodes lost"):
            await cluster.nodes[1].kill()
            assert not any(device.open for device in stage.devices)
            before = sum(len(device.ended) for device in stage.devices)
            await stage.load(stage.n(200), rate=50)
            ended = sum(len(device.ended) for device in stage.devices)
            assert ended == before, "one of three nodes answered for itself"
            await stage.until_status(
                gateway, lambda said: said["outbox"]["open"] >= 2 * stage.n(200)
            )
            async with asyncio.TaskGroup() as starts:
                for node in cluster.nodes[:2]:
                    starts.create_task(node.start(COMES_BACK_S))
        await stage.until_ended(HEALED_S)


ROWS: tuple[Row, ...] = (
    Row(
        name="cluster-nodes-lost",
        fault="kill -9 of one, then of two of three RabbitMQ nodes; both come back",
        must_hold="progress with one lost; none lost with two; resumes after healing",
        run=nodes_lost,
        timeout_s=600.0,
    ),
)
