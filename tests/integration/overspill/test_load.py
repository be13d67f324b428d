"""A load on a real pool, each way in."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from broker.amqp.delivery import Delivery
from broker.amqp.link import AmqpLink
from broker.node import Node
from broker.topology import result_queue
from edge_agent.settings import AgentSettings
from overspill.load.arrivals import Steady
from overspill.load.doors import Door, Via, find_door
from overspill.load.mix import Bounds, Mix, Plan
from overspill.load.payloads import read_payloads
from overspill.load.quantities import Weighted
from overspill.load.run import NoConnection, Patience
from overspill.load.session import Session
from tests.integration.edge_agent.edge import pool_models, serving, tiny, worker

pytestmark = pytest.mark.integration

IMAGES = Path(__file__).parents[3] / "examples" / "fashion" / "images"
COPY = "random:payload=uint8[1,1024]"
PATIENCE = Patience(linger_s=0.05)


@pytest.fixture(scope="module")
def pool(rabbit: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """RabbitMQ, and a worker that serves `copy` and `fashion`."""
    models = pool_models(tmp_path_factory.mktemp("pool"))
    with worker(rabbit.amqp_url("worker"), models):
        yield rabbit


def plan(
    count: int = 60,
    *,
    model: str = "copy",
    payload: str = COPY,
    senders: int = 2,
    **bounds: Any,
) -> Plan:
    return Plan(
        Steady.at(200),
        Mix(
            models=Weighted((model,), (1.0,)),
            payloads={model: read_payloads(payload)},
            deadlines_s=Weighted((10.0, 20.0), (0.5, 0.5)),
            senders=senders,
        ),
        Bounds(for_s=10, requests=count, **bounds),
    )


def agents(node: Node, *names: str) -> Door:
    urls = [node.mqtt_url(name) for name in names]
    return find_door(Via.MQTT, urls, None, senders=len(urls))


async def measured(
    door: Door, planned: Plan, *steps: float, patience: Patience = PATIENCE
) -> list[dict[str, Any]]:
    """The documents of runs whose generator may have been late: so may a test's."""
    session = Session(door, planned, steps or (1.0,), patience, max_lateness_s=60)
    await session.perform(Console(stderr=True))
    return session.runs


async def test_requests_sent_as_agents_are_answered_and_counted_once(
    pool: Node,
) -> None:
    (run,) = await measured(agents(pool, "agent-3", "agent-4"), plan(warmup_s=0.05))

    assert run["offered"] == run["answered"] == run["in_time"] == 60
    assert run["goodput"] == 1.0
    assert run["duplicates"] == run["lost"] == run["link_losses"] == 0
    assert run["latency_ms"]["count"] == 60
    assert run["latency_ms"]["p50"] <= run["latency_ms"]["p99"]
    assert run["warmup"]["offered"] == run["warmup"]["answered"]
    assert set(run["by_deadline"]) == {"10000ms", "20000ms"}
    assert sum(each["offered"] for each in run["by_deadline"].values()) == 60
    assert (run["valid"], run["complete"]) == (True, True)


async def test_envelopes_go_straight_into_the_queue_and_their_results_come_back(
    pool: Node,
) -> None:
    door = find_door(Via.QUEUE, [pool.amqp_url("worker")], None, senders=2)

    (run,) = await measured(door, plan(64, envelope=8))

    assert run["offered"] == run["answered"] == 64
    assert run["batch_size_mean"] >= 1
    assert run["link_losses"] == run["duplicates"] == 0
    # The queue of its results was its own and went with it.
    assert not [name for name in await pool.queues() if "results" in name]


async def test_devices_are_answered_by_the_edge_or_if_they_ask_by_the_cloud(
    pool: Node, mosquitto: str, short_tmp: Path
) -> None:
    settings = AgentSettings(
        agent_id="agent-1",
        state_dir=short_tmp / "agent",
        cloud_url=pool.mqtt_url("agent-1"),
        local_url=mosquitto,
        bundles=[tiny(short_tmp / "sure", threshold=0.0)],
        disk_reserve_bytes=0,
    )
    images = f"{IMAGES / 'test1000.npz'}#images"
    sources = {}
    async with serving(settings):
        for spill in (False, True):
            door = find_door(Via.DEVICE, [mosquitto], None, senders=3, spill=spill)
            (run,) = await measured(
                door, plan(30, model="fashion", payload=images, senders=3)
            )
            assert run["answered"] == 30, run["reasons"]
            sources[spill] = run["sources"]

    assert sources == {False: {"edge": 30}, True: {"cloud": 30}}


async def test_a_model_that_nobody_serves_fails_at_once_with_the_reason(
    pool: Node,
) -> None:
    (run,) = await measured(
        agents(pool, "agent-3"), plan(10, model="nosuch", payload=COPY, senders=1)
    )

    assert run["failed"] == 10
    assert run["goodput"] == 0.0
    assert run["reasons"]["failed"] == {"no worker serves model 'nosuch'": 10}


async def test_a_wrong_password_is_said_and_not_tried_for_ever(pool: Node) -> None:
    url = f"mqtt://agent-3:wrong@127.0.0.1:{pool.info.mqtt_port}"
    door = find_door(Via.MQTT, [url], None, senders=1)

    with pytest.raises(NoConnection, match="check the user and password"):
        await measured(door, plan(1, senders=1))


async def test_each_step_of_a_sweep_is_a_run_at_its_rate(pool: Node) -> None:
    runs = await measured(agents(pool, "agent-3"), plan(20, senders=1), 0.5, 2.0)

    assert [run["rate_per_s"] for run in runs] == [100.0, 400.0]
    assert [run["answered"] for run in runs] == [20, 20]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "overspill", "load", "--payload", "1KiB", *arguments]


def test_the_command_writes_its_figures_and_a_picture_of_a_sweep(
    pool: Node, tmp_path: Path
) -> None:
    picture = tmp_path / "sweep.svg"
    done = subprocess.run(
        command(
            *("--model", "copy", "--via", "queue", "--json", "-"),
            *("--broker", str(pool.folder), "--rate", "100/s", "--requests", "20"),
            *("--sweep", "50%,200%", "--picture", str(picture)),
            *("--max-lateness", "1min"),
        ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["format"] == "overspill.load/1"
    assert [run["answered"] for run in document["runs"]] == [20, 20]
    assert "goodput" in done.stderr
    assert picture.read_text().startswith("<?xml")


async def test_an_interrupted_load_tells_the_figures_so_far(
    pool: Node, tmp_path: Path
) -> None:
    file = tmp_path / "figures.json"
    answered = asyncio.Event()

    async def overhear(_: Delivery) -> None:
        answered.set()

    queue = result_queue("watcher", "agent-4")
    watcher = AmqpLink(
        pool.amqp_url("worker"),
        name="watcher",
        queues=[queue],
        consume={queue.name: 10},
        on_delivery=overhear,
    )
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(watcher.run())
        await watcher.wait_up()
        load = await asyncio.create_subprocess_exec(
            *command("--model", "copy", "--url", pool.mqtt_url("agent-4")),
            *("--rate", "50/s", "--for", "60s", "--json", str(file)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        await answered.wait()
        load.send_signal(signal.SIGINT)
        _, said = await load.communicate()
        watching.cancel()

    assert load.returncode == 130, said.decode()
    (run,) = json.loads(file.read_text())["runs"]
    assert run["complete"] is False
    assert run["offered"] == run["answered"] + run["open"] > 0
