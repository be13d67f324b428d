"""A worker that keeps examples: through its metrics, a full disk and a kill."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import pytest

from broker.messages import EdgeOpinion
from broker.node import Node
from cloud_worker.adapters.example_view import ExampleView, Filter, Found, NoExamples
from tests.integration.cloud_worker.pool import (
    Agent,
    WorkerProcess,
    repository,
    request,
)
from tests.integration.cloud_worker.test_health import served_port
from tests.integration.pages import metrics, sample
from tests.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

EDGE = EdgeOpinion(label="a", confidence=0.2, version="1")


def capturing(folder: Path, name: str) -> Path:
    """A repository of one model that may be captured."""
    models = repository(folder / "models", **{name: "line_lite"})
    (version,) = (models / name.replace("_", "-")).iterdir()
    sidecar = version / "model.json"
    said = json.loads(sidecar.read_text()) if sidecar.exists() else {}
    sidecar.write_text(json.dumps({**said, "capture": True}))
    return models


def environment(folder: Path, **more: str) -> dict[str, str]:
    return {
        "OVERSPILL_WORKER_EXAMPLES": str(folder / "examples"),
        "OVERSPILL_WORKER_EXAMPLES_RESERVE_MB": "0",
        **more,
    }


def kept(folder: Path) -> list[Found]:
    try:
        with ExampleView(folder / "examples") as view:
            return view.find(Filter())
    except NoExamples:
        return []


async def test_what_is_kept_dropped_and_evicted_is_in_the_metrics(
    rabbit: Node, tmp_path: Path
) -> None:
    models = capturing(tmp_path, "it_kept")
    few = {"OVERSPILL_WORKER_EXAMPLES_MAX": "3"}
    shares = {
        "OVERSPILL_WORKER_EXAMPLES_CLASS_SHARE": "1",
        "OVERSPILL_WORKER_EXAMPLES_REASON_SHARE": "1",
    }
    async with (
        Agent(rabbit) as agent,
        WorkerProcess(
            rabbit.amqp_url("worker"),
            models,
            *("--http-port", "0"),
            **environment(tmp_path, **few, **shares),
        ) as process,
    ):
        port = await served_port(process)
        await process.ready()
        model = "it-kept"
        ids = [f"k{number}" for number in range(5)]
        for number, id_ in enumerate(ids):
            await agent.ask(request(id_, model, value=number, edge=EDGE))
            await agent.result(id_)
        await agent.ask(request("twice", model, value=4.0, edge=EDGE))
        await agent.ask(request("private", model, value=9.0, capture=False))
        await agent.all_results(["twice", "private"])
        name = "overspill_worker_examples_total"
        labels = {"model": model, "reason": "hard"}

        async def counted(fate: str) -> float:
            said = await metrics(port)
            return said.get(sample(name, fate=fate, **labels), 0)

        for fate, count in (
            ("kept", 5),
            ("evicted", 2),
            ("again", 1),
            ("forbidden", 1),
        ):
            while await counted(fate) < count:  # noqa: ASYNC110 - of a process
                await asyncio.sleep(0.02)
            assert await counted(fate) == count
        said = await metrics(port)
        assert said[sample("overspill_worker_examples", model=model)] == 3
        assert said[sample("overspill_worker_examples_bytes", model=model)] > 0
        assert said[sample("overspill_worker_capture_stopped")] == 0
    assert sorted(each.row.count for each in kept(tmp_path)) == [1, 1, 2]


async def test_a_disk_that_takes_nothing_costs_no_answer_and_is_said_once(
    rabbit: Node, tmp_path: Path
) -> None:
    models = capturing(tmp_path, "it_full")
    nowhere = {"OVERSPILL_WORKER_EXAMPLES": "/proc/examples"}
    async with (
        Agent(rabbit) as agent,
        WorkerProcess(
            rabbit.amqp_url("worker"),
            models,
            *("--http-port", "0"),
            **{**environment(tmp_path), **nowhere},
        ) as process,
    ):
        port = await served_port(process)
        await process.ready()
        for number in range(20):
            await agent.ask(request(f"f{number}", "it-full", value=number))
            await agent.result(f"f{number}")
        stopped = sample("overspill_worker_capture_stopped")
        while (await metrics(port))[stopped] != 1:  # noqa: ASYNC110 - of a process
            await asyncio.sleep(0.02)
        said = [line for line in process.said if "capture_stopped" in line]
        assert len(said) == 1
        assert "/proc/examples" in said[0]
        process.signal(signal.SIGTERM)
        assert await process.ended() == 0


async def test_a_worker_that_is_killed_goes_on_with_what_it_has_kept(
    rabbit: Node, tmp_path: Path
) -> None:
    models = capturing(tmp_path, "it_killed")
    async with Agent(rabbit) as agent:
        for life in range(2):
            async with WorkerProcess(
                rabbit.amqp_url("worker"), models, **environment(tmp_path)
            ) as process:
                await process.ready()
                ids = [f"l{life}-{number}" for number in range(40)]
                for number, id_ in enumerate(ids):
                    value = float(100 * life + number)
                    await agent.ask(request(id_, "it-killed", value=value))
                await agent.all_results(ids)
                if life:
                    await until(lambda: len(kept(tmp_path)) >= 40)
                    process.signal(signal.SIGTERM)
                else:
                    await until(lambda: kept(tmp_path))
                    process.signal(signal.SIGKILL)
                await process.ended()
    left = kept(tmp_path)
    assert {each.part.folder.name for each in left} == {"part-1"}
    files = {each.stem for each in (tmp_path / "examples").rglob("*.example")}
    assert files == {each.row.digest for each in left}
    for each in left:
        assert each.read().model == "it-killed"
