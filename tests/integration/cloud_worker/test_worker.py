"""A real RabbitMQ, real agents' links, real models in their own process."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgpack
import numpy as np
import pytest
from PIL import Image

from broker.codec import pack, seal_envelope
from broker.messages import (
    Get,
    Medium,
    Priority,
    Request,
    Status,
    Tensor,
)
from broker.node import Node
from broker.topics import requests
from bundle import layout
from bundle.folder_tree import FolderTree
from fleet.adapters.dead_store import DeadStore, with_dead_store
from fleet.core.letters import Filter, Letter
from tests.integration.cloud_worker.pool import (
    Agent,
    WorkerProcess,
    first_value,
    repository,
    request,
    worker,
)
from tests.waiting import until

pytestmark = [
    pytest.mark.integration,
    # A RabbitMQ and, in some, a TensorFlow start first.
    pytest.mark.timeout(300),
]


def png(grey: int) -> bytes:
    data = io.BytesIO()
    Image.new("L", (20, 30), grey).save(data, "PNG")
    return data.getvalue()


async def test_a_spilled_request_comes_back_answered(
    rabbit: Node, tmp_path: Path
) -> None:
    models = repository(tmp_path, it_line="line_lite")
    async with worker(rabbit, models), Agent(rabbit) as agent:
        await agent.ask(request("line-1", "it-line", 4.0))
        result = await agent.result("line-1")
        assert result.status is Status.OK
        assert first_value(result) == 9.0
        assert (result.model, result.version) == ("it-line", "1")
        assert result.worker == "w-here"
        assert result.device == "cam1"
        assert result.batch_size == 1
        assert result.timings.infer_ms > 0
        assert result.server_time_ms > 0


async def test_an_image_is_decoded_and_named(rabbit: Node, tmp_path: Path) -> None:
    models = repository(tmp_path, it_bright="bright")
    async with worker(rabbit, models), Agent(rabbit) as agent:
        for name, data in (
            ("white", png(255)),
            ("black", png(0)),
            ("broken", png(0)[:40]),
        ):
            medium = Medium(media_type="image/png", data=data)
            await agent.ask(request(name, "it-bright", tensors=None, medium=medium))
        white, black = await agent.result("white"), await agent.result("black")
        assert (white.label, black.label) == ("bright", "dark")
        assert white.confidence == pytest.approx(1 / (1 + np.exp(-10)))
        refused = await agent.result("broken")
        assert refused.status is Status.FAILED
        assert "image" in (refused.reason or "")


async def test_an_envelope_is_one_batch_and_one_bad_item_costs_nothing(
    rabbit: Node, tmp_path: Path
) -> None:
    models = repository(tmp_path, it_mixed="line_lite")
    wrong = Tensor(dtype="float32", shape=[1, 3], data=bytes(12))
    nan = Tensor(
        dtype="float32", shape=[4], data=np.full(4, np.nan, np.float32).tobytes()
    )
    items = [
        pack(request("mixed-1", "it-mixed", 1.0)),
        pack(request("mixed-wrong", "it-mixed", tensors={"x": wrong})),
        pack(request("mixed-nan", "it-mixed", tensors={"x": nan})),
        msgpack.packb({"id": "mixed-poor", "device": "cam1"}),
        pack(request("mixed-other", "it-elsewhere")),
        pack(request("mixed-2", "it-mixed", 2.0)),
    ]
    async with worker(rabbit, models), Agent(rabbit) as agent:
        topic = requests("agent-1", "it-mixed", Priority.HI)
        await agent.send(topic, seal_envelope(Request, items))
        bad = {
            "mixed-wrong": "shape",
            "mixed-nan": "NaN",
            "mixed-poor": "Field required",
            "mixed-other": "topic of 'it-mixed'",
        }
        await agent.all_results(["mixed-1", "mixed-2", *bad])
        for number in (1, 2):
            good = await agent.result(f"mixed-{number}")
            assert first_value(good) == 2 * number + 1
            assert good.batch_size == 2
        for id_, words in bad.items():
            result = await agent.result(id_)
            assert result.status is Status.FAILED
            assert words in (result.reason or "")
        assert all(len(each) == 1 for each in agent.results.values())


async def test_a_request_too_big_for_one_batch_comes_back_whole(
    rabbit: Node, tmp_path: Path
) -> None:
    models = repository(tmp_path, it_big="line_lite")
    rows = np.arange(100 * 4, dtype=np.float32).reshape(100, 4)
    big = Tensor(dtype="float32", shape=[100, 4], data=rows.tobytes())
    async with worker(rabbit, models, max_batch=32), Agent(rabbit) as agent:
        await agent.ask(
            request("big", "it-big", tensors={"x": big}), request("small", "it-big")
        )
        result = await agent.result("big")
        assert first_value(await agent.result("small")) == 3
        (output,) = result.outputs.values()
        assert output.shape == [100, 4]
        given = np.frombuffer(output.data, np.float32).reshape(100, 4)
        assert np.array_equal(given, 2 * rows + 1)
        assert len(agent.results["big"]) == 1


async def test_inputs_of_any_length_share_batches_where_the_model_allows_padding(
    rabbit: Node, tmp_path: Path
) -> None:
    models = repository(tmp_path, it_total="total")
    lengths = (1, 2, 3, 4, 5, 16, 17, 64, 65)
    items = [
        request(
            f"total-{length}",
            "it-total",
            tensors={
                "x": Tensor(
                    dtype="float32",
                    shape=[1, length],
                    data=np.ones(length, np.float32).tobytes(),
                )
            },
        )
        for length in lengths
    ]
    async with worker(rabbit, models), Agent(rabbit) as agent:
        await agent.ask(*items)
        for length in lengths:
            result = await agent.result(f"total-{length}")
            assert first_value(result) == length
            # 1 to 4 are padded to 4; 65 is longer than any size, and alone.
            assert result.batch_size == {5: 2, 16: 2, 17: 2, 64: 2, 65: 1}.get(
                length, 4
            )


async def test_what_is_no_envelope_costs_the_worker_nothing(
    rabbit: Node, tmp_path: Path
) -> None:
    models = repository(tmp_path, it_noise="line_lite")
    async with worker(rabbit, models), Agent(rabbit) as agent:
        topic = requests("agent-1", "it-noise", Priority.NORM)
        whole = seal_envelope(Request, [pack(request("noise-0", "it-noise"))])
        newer = {"v": 7, "kind": "req", "items": [pack(request("noise-7", "it-noise"))]}
        for payload in (b"", b"noise", whole[:-20], b"\xff" * 5000):
            await agent.send(topic, payload)
        await agent.send(topic, msgpack.packb(newer))
        await agent.ask(request("noise-after", "it-noise"))
        assert (await agent.result("noise-after")).status is Status.OK
        told = await agent.result("noise-7")
        assert told.status is Status.FAILED
        assert "version 7" in (told.reason or "")
        assert "noise-0" not in agent.results


async def test_a_request_for_a_model_that_nobody_serves_is_answered(
    rabbit: Node, tmp_path: Path
) -> None:
    models = repository(tmp_path, it_known="line_lite")
    async with worker(rabbit, models), Agent(rabbit) as agent:
        await agent.ask(request("nobody-1", "it-nobody"))
        result = await agent.result("nobody-1")
        assert result.status is Status.FAILED
        assert result.reason == "no worker serves model 'it-nobody'"


async def test_requests_sent_before_the_first_worker_came_are_served(
    rabbit: Node, tmp_path: Path
) -> None:
    models = repository(tmp_path, it_early="line_lite")
    async with Agent(rabbit) as agent:
        await agent.ask(request("early-1", "it-early", 3.0))
        async with worker(rabbit, models):
            result = await agent.result("early-1")
        assert result.status is Status.OK
        assert first_value(result) == 7.0


async def test_an_expired_request_is_answered_without_work(
    rabbit: Node, tmp_path: Path
) -> None:
    models = repository(tmp_path, it_late="line_lite")
    async with worker(rabbit, models), Agent(rabbit) as agent:
        await agent.ask(request("late-1", "it-late", expires_at_ms=1))
        result = await agent.result("late-1")
        assert result.status is Status.EXPIRED
        assert result.batch_size == 0


async def test_a_result_goes_to_the_agent_whose_topic_it_was(
    rabbit: Node, tmp_path: Path
) -> None:
    models = repository(tmp_path, it_two="line_lite")
    async with (
        worker(rabbit, models),
        Agent(rabbit, "agent-1") as first,
        Agent(rabbit, "agent-2") as second,
    ):
        for number in range(20):
            await first.ask(request(f"first-{number}", "it-two"))
            await second.ask(request(f"second-{number}", "it-two"))
        await first.all_results(f"first-{number}" for number in range(20))
        await second.all_results(f"second-{number}" for number in range(20))
        assert not any(each.startswith("second") for each in first.results)
        assert not any(each.startswith("first") for each in second.results)


async def test_a_request_that_kills_tensorflow_fails_alone(
    rabbit: Node, tmp_path: Path
) -> None:
    models = repository(tmp_path, it_fragile="fragile", it_healthy="line_lite")
    async with worker(rabbit, models), Agent(rabbit) as agent:
        await agent.ask(
            request("fragile-1", "it-fragile", 1.0),
            request("fragile-crash", "it-fragile", 666.0),
            request("fragile-2", "it-fragile", 2.0),
        )
        await agent.ask(request("healthy-1", "it-healthy", 1.0))
        await agent.all_results(
            ["fragile-1", "fragile-crash", "fragile-2", "healthy-1"]
        )
        assert first_value(await agent.result("fragile-1")) == 2.0
        assert first_value(await agent.result("fragile-2")) == 4.0
        assert first_value(await agent.result("healthy-1")) == 3.0
        crash = await agent.result("fragile-crash")
        assert crash.status is Status.FAILED
        assert "SIGABRT" in (crash.reason or "")
        await agent.ask(
            request("fragile-3", "it-fragile", 3.0),
            request("fragile-refused", "it-fragile", 13.0),
        )
        assert first_value(await agent.result("fragile-3")) == 6.0
        refused = await agent.result("fragile-refused")
        assert "13 is refused" in (refused.reason or "")
        kept = {each.contents[0].id: each for each in await dead_letters(rabbit)}
        deaths = kept["fragile-crash"].death.history
        assert [each.crashed for each in deaths] == [True] * len(deaths)
        assert deaths[-1].requests == 1
        assert len(deaths) <= 3
        assert kept["fragile-refused"].death.reason in (refused.reason or "")
        assert kept["fragile-refused"].death.worker == "w-here"


async def dead_letters(node: Node) -> list[Letter]:
    """What operators find of the model of this test."""

    async def look(store: DeadStore) -> list[Letter]:
        wanted = Filter(model="it-fragile")
        return [each.letter async for each in store.chosen(wanted, now_ms=0)]

    return await with_dead_store(node.amqp_url("fleet"), look, timeout_s=10)


async def test_a_broken_newest_version_leaves_the_one_before_it_serving(
    rabbit: Node, tmp_path: Path
) -> None:
    models = repository(tmp_path, it_versions="line_lite")
    for version in ("2", "10"):
        (tmp_path / "it-versions" / version).mkdir()
    (tmp_path / "it-versions" / "10" / "line.tflite").write_bytes(b"half")
    (tmp_path / "it-versions" / "2" / "notes.txt").write_text("no model")
    async with worker(rabbit, models), Agent(rabbit) as agent:
        await agent.ask(request("versions-1", "it-versions"))
        assert (await agent.result("versions-1")).version == "1"


async def test_a_worker_serves_the_files_of_its_registry(
    rabbit: Node, tmp_path: Path
) -> None:
    models = repository(tmp_path / "models", it_update="line_lite")
    data = np.random.default_rng(0).bytes(300_000)
    path = layout.blob(hashlib.sha256(data).hexdigest())
    tree = FolderTree(tmp_path / "registry")
    tree.write(path, data)
    tree.write("desired/agent-1", b"for agent-1 only")
    async with (
        worker(rabbit, models, registry=tmp_path / "registry"),
        Agent(rabbit) as agent,
        Agent(rabbit, "agent-2") as other,
    ):
        own = await agent.get(Get(want="file", path="desired/agent-1"))
        assert own.data == b"for agent-1 only"
        pieces = [
            await agent.get(Get(want="file", path=path, offset=at, length=100_000))
            for at in range(0, 300_000, 100_000)
        ]
        assert b"".join(each.data for each in pieces) == data
        assert {each.total_bytes for each in pieces} == {len(data)}
        for nowhere in (
            Get(want="file", path="desired/agent-1"),
            Get(want="file", path="blobs/none"),
        ):
            blob = await other.get(nowhere)
            assert (blob.status, blob.data) == ("not_found", b"")
            assert blob.reason


async def test_a_worker_without_rabbitmq_says_so_and_starts_when_it_comes(
    rabbit: Node, tmp_path: Path, free_port: int
) -> None:
    models = repository(tmp_path, it_patient="line_lite")
    real = rabbit.amqp_url("worker")
    port = rabbit.info.amqp_port
    url = real.replace(f":{port}/", f":{free_port}/")
    async with WorkerProcess(url, models) as process, Agent(rabbit) as agent:
        await until(lambda: any("nothing listens" in line for line in process.said))
        assert not process.lines
        async with _forwarding(free_port, port):
            await process.ready()
            await agent.ask(request("patient-1", "it-patient"))
            assert (await agent.result("patient-1")).status is Status.OK
        await until(lambda: sum("link down" in line for line in process.said) >= 2)
        async with _forwarding(free_port, port):
            await agent.ask(request("patient-2", "it-patient"))
            assert (await agent.result("patient-2")).status is Status.OK


async def test_a_stop_while_models_load_ends_the_worker_and_its_model_process(
    rabbit: Node, tmp_path: Path
) -> None:
    models = repository(tmp_path, it_slow="line_saved")
    async with WorkerProcess(rabbit.amqp_url("worker"), models) as process:
        child = 0

        def has_child() -> bool:
            nonlocal child
            child = process.model_process() or 0
            return child > 0

        await until(has_child)
        process.signal(signal.SIGTERM)
        assert await process.ended() == 0
        assert not process.lines
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)


async def test_wrong_credentials_are_named_and_the_worker_keeps_trying(
    rabbit: Node, tmp_path: Path
) -> None:
    models = repository(tmp_path, it_stranger="line_lite")
    url = f"amqp://stranger:wrong@127.0.0.1:{rabbit.info.amqp_port}/%2F"
    async with WorkerProcess(url, models) as process:
        await until(
            lambda: any("refused user 'stranger'" in line for line in process.said)
        )
        assert process.code is None
        assert not any("wrong" in line for line in process.said)


@asynccontextmanager
async def _forwarding(listen: int, to: int) -> AsyncIterator[None]:
    """Let a port lead to another one, and cut every connection at the end."""
    writers: list[asyncio.StreamWriter] = []

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        writer.close()

    async def accept(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", to)
        writers.extend((writer, far_writer))
        await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))

    server = await asyncio.start_server(accept, "127.0.0.1", listen)
    try:
        yield
    finally:
        server.close()
        for writer in writers:
            writer.close()
        await server.wait_closed()


def run_once(*arguments: str) -> tuple[int, str, str]:
    """Run the command to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "cloud_worker", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("folder", ["missing", "empty"])
def test_a_worker_without_models_says_so_in_a_line(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty").mkdir()
    code, _, error = run_once("run", "--models", str(tmp_path / folder))
    assert code == 1
    # What is logged is JSON; what a person is told is no more than a line.
    (said,) = [line for line in error.splitlines() if not line.startswith("{")]
    assert str(tmp_path / folder) in said
    assert "NAME/VERSION/" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--amqp-url", "http://x"], "does not name an AMQP broker"),
        (["--max-batch", "0"], "max_batch"),
        (["--id", "a/b"], "worker_id"),
        (["--log-level", "loud"], "--log-level"),
    ],
)
def test_a_wrong_option_is_named_in_a_line(
    tmp_path: Path, options: list[str], words: str
) -> None:
    models = repository(tmp_path, it_options="line_lite")
    code, _, error = run_once("run", "--models", str(models), *options)
    assert code == 1
    assert "Traceback" not in error
    assert words in error.splitlines()[-1]


def test_models_are_listed_for_a_person_and_for_a_program(tmp_path: Path) -> None:
    models = repository(tmp_path, it_b="line_lite", it_a="line_saved")
    (tmp_path / "no.dots").mkdir()
    (tmp_path / "it-a" / "0").mkdir()
    code, text, _ = run_once("models", "--models", str(models))
    assert code == 0
    assert text.splitlines()[:2] == ["it-a 1 (saved_model)", "it-b 1 (tflite)"]
    code, text, _ = run_once("models", "--models", str(models), "--json")
    listed = json.loads(text)
    assert [each["name"] for each in listed["models"]] == ["it-a", "it-b"]
    reasons = [each["reason"] for each in listed["passed_over"]]
    assert any("half copied" in each for each in reasons)
    assert any("no dots" in each for each in reasons)
