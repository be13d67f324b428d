"""Versions come, fail, share and go under a running worker, and no request fails."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from broker.amqp.link import AmqpLink
from broker.messages import Result, Status
from broker.node import Node
from bundle.folder_seal import seal_folder
from lifecycle.clock import SystemClock
from tests.consumed import until_consumed
from tests.integration.cloud_worker.pool import (
    MODELS,
    Agent,
    WorkerProcess,
    first_value,
    repository,
    request,
    worker,
)
from tests.integration.cloud_worker.test_worker import run_once
from tests.trust import FleetTrust
from tests.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

LINE = MODELS / "line_lite" / "1"
QUICK = {"watch_s": 0.1}
# Each version in a process of its own, as a model has that is worth a worker.
APART = {**QUICK, "inline_below_ms": 0.0}


def put(models: Path, name: str, version: str) -> Path:
    """Add a version as one should: copied under another name, then renamed."""
    copy = models / name / f".{version}.part"
    shutil.copytree(LINE, copy)  # makes the model's folder, too
    return copy.rename(models / name / version)


class Stream:
    """Requests that keep coming, and what became of them in the order of sending."""

    def __init__(self, agent: Agent, model: str) -> None:
        self._agent = agent
        self._model = model
        self.ids: list[str] = []

    async def run(self) -> None:
        while True:
            id_ = f"{self._model}-{len(self.ids)}"
            await self._agent.ask(request(id_, self._model, 4.0))
            self.ids.append(id_)
            await asyncio.sleep(0.005)

    async def one_more(self) -> Result:
        """The result of a request that is sent from now on."""
        sent = len(self.ids)
        await until(lambda: len(self.ids) > sent)
        return await self._agent.result(self.ids[sent])

    async def until_answered_by(self, version: str) -> None:
        # What loads beside others leaves them the processor, however busy it is.
        async with asyncio.timeout(150):
            while (await self.one_more()).version != version:
                pass

    async def versions(self) -> list[str | None]:
        """Who answered each until now; all of them were answered."""
        ids = tuple(self.ids)
        await self._agent.all_results(ids)
        results = [self._agent.results[id_][0] for id_ in ids]
        assert {each.status for each in results} == {Status.OK}, [
            each.reason for each in results if each.status is not Status.OK
        ]
        assert {first_value(each) for each in results} == {9.0}
        return [each.version for each in results]


@asynccontextmanager
async def stream(agent: Agent, model: str) -> AsyncIterator[Stream]:
    flowing = Stream(agent, model)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(flowing.run())
        try:
            yield flowing
        finally:
            task.cancel()


def changes(versions: list[str | None]) -> list[str | None]:
    return [
        version
        for index, version in enumerate(versions)
        if index == 0 or version != versions[index - 1]
    ]


@pytest.mark.parametrize("how", [QUICK, APART], ids=["inline", "apart"])
async def test_a_version_that_is_copied_in_slowly_takes_over_once_and_none_fails(
    rabbit: Node, tmp_path: Path, how: dict[str, float]
) -> None:
    name = f"mv-slow-{len(how)}"
    models = repository(tmp_path, **{name: "line_lite"})
    data = (LINE / "line.tflite").read_bytes()
    async with (
        worker(rabbit, models, **how),
        Agent(rabbit) as agent,
        stream(agent, name) as requests,
    ):
        await requests.one_more()
        folder = models / name / "2"
        folder.mkdir()
        with (folder / "line.tflite").open("wb") as file:
            for start in range(0, len(data), len(data) // 10):
                file.write(data[start : start + len(data) // 10])
                file.flush()
                await asyncio.sleep(0.05)
        await requests.until_answered_by("2")
        shutil.rmtree(models / name / "1")
        for _ in range(20):
            await requests.one_more()
        assert changes(await requests.versions()) == ["1", "2"]


async def test_a_broken_version_is_told_and_passed_over_until_it_is_mended(
    rabbit: Node, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = repository(tmp_path, **{"mv-broken": "line_lite"})
    said = ""

    def says(words: str) -> Callable[[], bool]:
        def look() -> bool:
            nonlocal said
            said += capsys.readouterr().out
            return words in said

        return look

    async with (
        worker(rabbit, models, **QUICK),
        Agent(rabbit) as agent,
        stream(agent, "mv-broken") as requests,
    ):
        folder = models / "mv-broken" / "2"
        folder.mkdir()
        (folder / "line.tflite").write_bytes(b"this is no model")
        await until(says("model version passed over"))
        await requests.one_more()
        (folder / "line.tflite").write_bytes((LINE / "line.tflite").read_bytes())
        await requests.until_answered_by("2")
        assert changes(await requests.versions()) == ["1", "2"]
    assert said.count("model version passed over") == 1


async def test_a_policy_shares_requests_out_and_may_change_at_any_time(
    rabbit: Node, tmp_path: Path
) -> None:
    models = repository(tmp_path, **{"mv-policy": "line_lite"})
    put(models, "mv-policy", "2")
    policy = models / "mv-policy" / "policy.json"
    policy.write_text('{"pinned": "1"}')
    async with (
        worker(rabbit, models, **QUICK),
        Agent(rabbit) as agent,
        stream(agent, "mv-policy") as requests,
    ):
        assert (await requests.one_more()).version == "1"
        policy.write_text('{"canary": {"1": 0.5, "2": 0.5}}')
        await requests.until_answered_by("2")
        ids = [f"mv-share-{number}" for number in range(100)]
        await agent.ask(*(request(id_, "mv-policy", 4.0) for id_ in ids))
        await agent.all_results(ids)
        first = {id_: agent.results[id_][0].version for id_ in ids}
        assert 25 < list(first.values()).count("2") < 75
        await agent.ask(*(request(id_, "mv-policy", 4.0) for id_ in ids))
        await until(lambda: all(len(agent.results[id_]) == 2 for id_ in ids))
        assert {id_: agent.results[id_][1].version for id_ in ids} == first
        policy.write_text('{"pinned": "9"}')  # is not there: all goes on
        policy.write_text('{"pinned": "2"}')
        async with asyncio.timeout(60):
            while [(await requests.one_more()).version for _ in range(8)] != 8 * ["2"]:
                pass
        await requests.versions()


async def test_over_the_memory_limit_the_unused_model_leaves_and_comes_back(
    rabbit: Node, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("mv-lru-a", "mv-lru-b")
    models = repository(tmp_path, **dict.fromkeys(names, "line_lite"))
    async with (
        worker(rabbit, models, models_memory_mb=1, **APART),
        Agent(rabbit) as agent,
    ):
        for turn in range(2):
            for name in names:
                ids = [f"{name}-{turn}-{number}" for number in range(5)]
                for id_ in ids:
                    await agent.ask(request(id_, name))
                await agent.all_results(ids)
                for id_ in ids:
                    assert agent.results[id_][0].status is Status.OK
    # Room for one: each of the four turns but the last one's began with a change.
    assert capsys.readouterr().out.count("model unloaded") in {4, 5}


async def test_a_model_whose_folder_goes_leaves_its_queue_to_others_and_may_return(
    rabbit: Node, tmp_path: Path
) -> None:
    models = repository(tmp_path, **{"mv-stays": "line_lite", "mv-goes": "line_lite"})
    link = AmqpLink(rabbit.amqp_url("worker"), name="depth")
    async with (
        worker(rabbit, models, **QUICK),
        Agent(rabbit) as agent,
        asyncio.TaskGroup() as group,
    ):
        looking = group.create_task(link.run())
        await link.wait_up()
        await until_consumed(rabbit.amqp_url("worker"), "mv-goes", "mv-stays")
        async with stream(agent, "mv-goes") as requests:
            await requests.one_more()
            shutil.rmtree(models / "mv-goes")
            async with asyncio.timeout(30):
                while await link.depth("infer.mv-goes.norm") < 3:  # noqa: ASYNC110 - the broker's
                    await asyncio.sleep(0.05)
        await agent.ask(request("mv-stays-1", "mv-stays"))
        assert (await agent.result("mv-stays-1")).status is Status.OK
        assert await link.depth("infer.mv-goes.norm") >= 3
        put(models, "mv-new", "1")
        put(models, "mv-goes", "2")
        assert set(await requests.versions()) == {"1", "2"}
        async with stream(agent, "mv-new") as new:
            await new.until_answered_by("1")
        looking.cancel()


async def test_a_repository_whose_disk_hangs_holds_up_neither_answers_nor_the_end(
    rabbit: Node, tmp_path: Path
) -> None:
    models = repository(tmp_path, mv_hangs="line_lite")
    pipe = models / "mv-hangs" / "policy.json"
    async with (
        Agent(rabbit) as agent,
        WorkerProcess(
            rabbit.amqp_url("worker"), models, OVERSPILL_WORKER_WATCH_S="0.1"
        ) as worker,
    ):
        await worker.ready()
        os.mkfifo(pipe)
        with await opened_by_a_reader(pipe):
            await agent.ask(request("mv-hangs-1", "mv-hangs"))
            assert (await agent.result("mv-hangs-1")).status is Status.OK
            worker.signal(signal.SIGTERM)
            assert await worker.ended() == 0


async def opened_by_a_reader(pipe: Path) -> BinaryIO:
    """The end to write to, once somebody reads, who then waits until it is closed."""
    async with asyncio.timeout(20):
        while True:
            try:
                return os.fdopen(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK), "wb")
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                await asyncio.sleep(0.02)


async def test_two_workers_serve_what_each_of_them_has(
    rabbit: Node, tmp_path: Path
) -> None:
    here = repository(tmp_path / "a", **{"mv-both": "line_lite", "mv-b": "line_lite"})
    there = tmp_path / "b"
    put(there, "mv-both", "2")
    async with (
        worker(rabbit, here, worker_id="w-1", only=("mv-both",), **QUICK),
        worker(rabbit, there, worker_id="w-2", **QUICK),
        Agent(rabbit) as agent,
        stream(agent, "mv-both") as requests,
    ):
        await requests.until_answered_by("1")
        await requests.until_answered_by("2")
        await agent.ask(request("mv-b-1", "mv-b"))
        assert (await agent.result("mv-b-1")).reason == "no worker serves model 'mv-b'"
    results = [agent.results[id_][0] for id_ in requests.ids if id_ in agent.results]
    assert {(each.worker, each.version) for each in results} == {
        ("w-1", "1"),
        ("w-2", "2"),
    }
    assert {each.status for each in results} == {Status.OK}


async def test_what_nobody_signed_answers_no_request(
    rabbit: Node, tmp_path: Path
) -> None:
    fleet = FleetTrust(tmp_path / "fleet", SystemClock().wall_ms() / 1000)
    models = repository(tmp_path, mv="line_lite")
    seal = seal_folder(models / "mv" / "1", "mv", "1").model_dump_json().encode()
    fleet.repository.draft_folder("mv", "1", seal)
    assert not fleet.sign().waiting
    put(models, "mv", "2")
    root = tmp_path / "root.json"
    root.write_bytes(fleet.root())
    trusting = {"trusted_root": root, "registry": fleet.registry, **QUICK}
    async with worker(rabbit, models, **trusting), Agent(rabbit) as agent:
        await agent.ask(request("signed", "mv", 4.0))
        result = await agent.result("signed")
        assert (result.status, result.version) == (Status.OK, "1")


def test_the_list_of_models_says_by_what_policy_they_answer(tmp_path: Path) -> None:
    models = repository(tmp_path, a="line_lite", b="line_lite", c="line_lite")
    for name in ("a", "b"):
        put(models, name, "2")
    (models / "a" / "policy.json").write_text('{"canary": {"1": 0.75, "2": 0.25}}')
    (models / "b" / "policy.json").write_text('{"pinned": "1"}')
    (models / "c" / "policy.json").write_text('{"pinned": 1}')
    code, text, _ = run_once("models", "--models", str(models))
    assert code == 0
    assert text.splitlines()[:3] == [
        "a 25 % 2 (tflite), 75 % 1 (tflite); canary: 75 % 1, 25 % 2",
        "b 1 (tflite); pinned: 1; others: 2",
        "c is not served; its policy.json is wrong; others: 1",
    ]
    assert "policy.json: pinned" in text.splitlines()[3]
    code, text, _ = run_once("models", "--models", str(models), "--only", "b", "--json")
    (b,) = json.loads(text)["models"]
    assert (b["policy"], b["shares"]) == ("pinned: 1", {"1": 1.0})
    assert [each["version"] for each in b["versions"]] == ["2", "1"]
