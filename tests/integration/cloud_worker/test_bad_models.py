"""Models with every fault there is: their requests hear why, and nobody else notices."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
import signal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from broker.messages import Request, Status, Tensor
from broker.node import Node
from tests.consumed import until_consumed
from tests.integration.cloud_worker.pool import (
    MODELS,
    Agent,
    WorkerProcess,
    first_value,
    repository,
    request,
)
from tests.integration.cloud_worker.test_model_versions import stream
from tests.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

HANG, SPOIL = 99.0, 55.0
# What a version passed over says in the log.
PASSED_OVER = "model version passed over"


def rows(id_: str, model: str, count: int) -> Request:
    """One request that is a batch of `count` by itself."""
    array = np.ones((count, 4), np.float32)
    tensor = Tensor(dtype="float32", shape=[count, 4], data=array.tobytes())
    return request(id_, model, tensors={"x": tensor})


@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="an extra, not installed")
async def test_a_model_that_lies_loses_rows_hangs_and_crashes_fails_those_who_ask_for_it(
    rabbit: Node, tmp_path: Path
) -> None:
    models = repository(tmp_path, bm_ill="ill", bm_well="line_lite")
    quick = {
        "OVERSPILL_WORKER_BATCH_TIMEOUT_S": "0.5",
        # Both in a process of their own.
        "OVERSPILL_WORKER_INLINE_BELOW_MS": "0",
    }
    async with (
        Agent(rabbit) as agent,
        WorkerProcess(rabbit.amqp_url("worker"), models, **quick) as worker,
    ):
        await worker.ready()
        await until_consumed(rabbit.amqp_url("worker"), "bm-ill", "bm-well")
        async with stream(agent, "bm-well") as neighbours:

            async def why(bad: Request, *good: Request) -> str:
                """Why one failed, when those that came with it have not."""
                await agent.ask(bad, *good)
                for each in good:
                    assert first_value(await agent.result(each.id)) == 2.0
                result = await agent.result(bad.id)
                assert result.status is Status.FAILED
                assert result.outputs == {}
                return result.reason or ""

            def well(id_: str) -> Request:
                return request(id_, "bm-ill", 1.0)

            nan = request("nan", "bm-ill", SPOIL)
            assert "is not a number" in await why(nan, well("n-1"), well("n-2"))
            short = rows("five", "bm-ill", 5)
            assert "has shape [4, 4] for 5 rows" in await why(short)
            # Five that come together may well be run as one batch of five.
            five = [well(f"five-{number}") for number in range(5)]
            await agent.ask(*five)
            for each in five:
                assert first_value(await agent.result(each.id)) == 2.0
            hangs = request("hangs", "bm-ill", HANG)
            assert "did not answer within" in await why(hangs, well("h-1"))
            if platform.machine() == "x86_64":
                crashes = rows("seven", "bm-ill", 7)
                assert "SIGFPE" in await why(crashes)
            await agent.ask(well("after"))
            assert first_value(await agent.result("after")) == 2.0
        await neighbours.versions()  # all of them answered, and rightly
        assert len(neighbours.ids) > 50
        worker.signal(signal.SIGTERM)
        assert await worker.ended() == 0
        assert not any("ledger_mismatch" in line for line in worker.said)


async def test_models_that_do_not_load_or_never_end_loading_hold_nobody_up(
    rabbit: Node, tmp_path: Path
) -> None:
    models = repository(tmp_path, bm_serves="line_lite", bm_half="line_lite")
    (models / "bm-half" / "1" / "line.tflite").write_bytes(b"half a mod")
    environment = {"OVERSPILL_WORKER_WATCH_S": "0.1"}

    def said(words: str, model: str) -> bool:
        return any(words in line and model in line for line in worker.said)

    async def answered_by(version: str, *ids: str) -> None:
        for id_ in ids:
            await agent.ask(request(id_, "bm-serves"))
            result = await agent.result(id_)
            assert (result.status, result.version) == (Status.OK, version)

    async with (
        Agent(rabbit) as agent,
        WorkerProcess(rabbit.amqp_url("worker"), models, **environment) as worker,
    ):
        await worker.ready()
        assert said(PASSED_OVER, "bm-half")
        assert worker.model_process() is None  # what serves does so inline
        put(models, "bm-hangs", endless)
        await until(worker.model_process)
        loading = worker.model_process()
        await answered_by("1", *(f"while-{number}" for number in range(20)))
        assert worker.model_process() == loading
        # As `load_timeout_s` does, and an operator may do sooner.
        os.kill(loading or 0, signal.SIGKILL)
        await until(lambda: said(PASSED_OVER, "bm-hangs"))
        assert said("was killed by SIGKILL", "bm-hangs")
        put(models, "bm-serves", whole, "2")
        await until(lambda: said("model answers", '{"2": 1'))
        await answered_by("2", "after")
        put(models, "bm-hangs", endless, "2")
        await until(worker.model_process)
        worker.signal(signal.SIGTERM)
        assert await worker.ended() == 0


async def test_a_version_that_loads_and_then_only_dies_gives_way_to_the_one_before(
    rabbit: Node, tmp_path: Path
) -> None:
    models = repository(tmp_path, bm_back="line_lite")
    environment = {
        "OVERSPILL_WORKER_WATCH_S": "0.1",
        "OVERSPILL_WORKER_INLINE_BELOW_MS": "0",
        "OVERSPILL_WORKER_MAX_DEATHS": "2",
    }
    async with (
        Agent(rabbit) as agent,
        WorkerProcess(rabbit.amqp_url("worker"), models, **environment) as worker,
    ):
        await worker.ready()
        first = worker.model_process()
        put(models, "bm-back", whole, "2")
        await until(lambda: any('{"2": 1' in line for line in worker.said))
        await until(lambda: worker.model_process() not in {first, None})
        killed: set[int] = set()
        while not any("model version given up" in line for line in worker.said):
            process = worker.model_process()
            if process is not None and process not in {first, *killed}:
                killed.add(process)
                os.kill(process, signal.SIGKILL)
            await asyncio.sleep(0.02)
        await agent.ask(request("after", "bm-back"))
        result = await agent.result("after")
        assert (result.status, result.version) == (Status.OK, "1")
        assert len(killed) == 2


def endless(folder: Path) -> None:
    """A file whose first byte never comes, as on a disk that is away."""
    os.mkfifo(folder / "line.tflite")


def whole(folder: Path) -> None:
    shutil.copy(MODELS / "line_lite" / "1" / "line.tflite", folder)


def put(models: Path, name: str, fill: Any, version: str = "1") -> None:
    """Add a version that is whole when it gets its name."""
    part = models / name / f".{version}.part"
    part.mkdir(parents=True)
    fill(part)
    part.rename(models / name / version)
