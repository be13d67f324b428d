"""A private cluster of three."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from broker.cluster import Cluster
from broker.process import alive
from tests.integration.broker.links import amqp, mqtt, until

# Three Erlang nodes, and some ten runs of rabbitmqctl.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


async def test_a_cluster_of_three_goes_on_without_one_and_leaves_nothing(
    short_tmp: Path,
) -> None:
    cluster = Cluster(short_tmp / "c", models=["m"])
    async with cluster:
        pids = [node.info.pid for node in cluster.nodes]
        words = "-q --formatter json list_queues name type members"
        queues = json.loads(await cluster.nodes[2].control(*words.split()))
        assert {"infer.m.norm", "unrouted"} <= {queue["name"] for queue in queues}
        assert {len(queue["members"]) for queue in queues} == {3}
        await cluster.nodes[0].kill()
        assert cluster.running() == 2
        async with (
            amqp(cluster.amqp_url("worker")) as worker,
            mqtt(cluster.mqtt_url("agent-1"), "agent-1", "e1/agent-1/dn/#") as agent,
        ):
            await agent.publish("e1/agent-1/up/req/m/norm", b"", timeout_s=20)
            await worker.publish("e1.agent-1.dn.res", b"", timeout_s=20)
            await until(lambda: agent.up and worker.up)
    assert not any(alive(pid) for pid in pids if pid is not None)
