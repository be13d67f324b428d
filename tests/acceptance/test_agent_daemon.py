"""The daemon as its operator meets it: real processes, signals, exit codes, messages."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from broker.node import Node, NodeInfo
from broker.node_info import save_info
from broker.ports import free_port as choose_port
from tests.acceptance.processes import agent, one_line, said
from tests.consumed import until_consumed
from tests.integration.edge_agent.edge import (
    ROOT,
    SHIRT,
    Device,
    WorkerProcess,
    device,
    pool_models,
    tiny,
    worker,
)
from tests.waiting import until

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(240)]  # real processes

IMAGES = ROOT / "examples" / "fashion" / "images"
COPY = {
    "payload": {
        "dtype": "uint8",
        "shape": [1, 1024],
        "data": base64.b64encode(bytes(range(256)) * 4).decode(),
    }
}


@pytest.fixture
def sure(short_tmp: Path) -> Path:
    """A bundle that answers every image itself."""
    return tiny(short_tmp / "sure", threshold=0.0)


@pytest.fixture
def planned(short_tmp: Path) -> Iterator[Node]:
    """A RabbitMQ whose ports and passwords are settled and that was never started."""
    folder = short_tmp / "rabbit"
    folder.mkdir()
    ports: list[int] = []
    while len(ports) < 4:
        ports.append(choose_port(avoid=ports))
    info = NodeInfo(
        name=f"overspill-late-{ports[0]}@localhost",
        ports=dict(zip(("amqp", "mqtt", "dist", "epmd"), ports, strict=True)),
        passwords=dict.fromkeys(("admin", "worker", "fleet", "agent-1"), "late"),
        agents=("agent-1",),
    )
    save_info(folder, info)
    node = Node.load(folder)
    yield node
    asyncio.run(node.kill())


@pytest.fixture
def pool(rabbit: Node, tmp_path: Path) -> Iterator[WorkerProcess]:
    with worker(rabbit.amqp_url("worker"), pool_models(tmp_path)) as process:
        yield process


@pytest.mark.timeout(400)
async def test_rabbitmq_may_come_late_and_go_at_any_time_and_every_spill_is_answered(
    planned: Node, mosquitto: str, sure: Path, short_tmp: Path, tmp_path: Path
) -> None:
    settings = {
        "agent_id": "agent-1",
        "cloud_url": planned.mqtt_url("agent-1"),
        "local_url": mosquitto,
        "bundles": sure,
        "resend_after_s": 1,
        # RabbitMQ 3.10 may take its MQTT clients up to 100 s after it was killed.
        "default_deadline_s": 240,
    }
    async with agent(short_tmp, **settings) as daemon, device(mosquitto) as cam:
        # There is none yet.
        before = [f"before-{number}" for number in range(50)]
        await cam.send("fashion", SHIRT)
        assert (await cam.next_answer(0))["source"] == "edge"
        await send_all(cam, before)
        await until(lambda: all(cam.of(id_) for id_ in before))
        assert {cam.of(id_)[0]["status"] for id_ in before} == {"accepted"}
        waiting = await daemon.status()
        assert waiting["outbox"]["open"] == len(before)
        assert "nothing listens" in waiting["cloud"]["error"]

        # It appears.
        await planned.start()
        with worker(planned.amqp_url("worker"), pool_models(tmp_path)):
            await answered_by_the_cloud(cam, before)
            drained = await daemon.until_status(lambda each: not each["outbox"]["open"])
            assert drained["cloud"] == {"configured": True, "up": True, "error": None}

            # After a kill while a worker was just declaring a quorum queue, RabbitMQ 3.10
            # was seen to leave that queue without a leader, and its consumers waiting.
            await until_consumed(planned.amqp_url("worker"), "copy", "fashion")

            # It goes as in a power cut, with requests and results on their way.
            during = [f"during-{number}" for number in range(60)]
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(send_all(cam, during, pause_s=0.005))
                await until(lambda: cam.of(during[20]))
                await planned.kill()
            await daemon.until_status(lambda each: not each["cloud"]["up"])
            seen = len(cam.raw)
            await cam.send("fashion", SHIRT)
            await until(
                lambda: any(each["source"] == "edge" for each in cam.answers[seen:])
            )
            await send_all(cam, ["away"])
            await until(lambda: cam.of("away"))
            assert [each["status"] for each in cam.of("away")] == ["accepted"]

            # It comes back.
            await planned.start()
            await answered_by_the_cloud(cam, [*during, "away"])
        ended = await daemon.until_status(lambda each: not each["outbox"]["untold"])
        ids = [*before, *during, "away"]
        assert (ended["outbox"]["open"], ended["outbox"]["answered"]) == (0, len(ids))
        for id_ in ids:
            assert len([each for each in cam.of(id_) if each["final"]]) == 1, id_
        assert await daemon.end() == 0


async def send_all(cam: Device, ids: list[str], pause_s: float = 0.0) -> None:
    """Send a request under each id, at the device's own pace."""
    for id_ in ids:
        await cam.send("copy", {"id": id_, "inputs": COPY})
        await asyncio.sleep(pause_s)


async def answered_by_the_cloud(cam: Device, ids: list[str]) -> None:
    """Return once each has its answer."""
    for id_ in ids:
        answer = await cam.final(id_, 150)
        assert (answer["status"], answer["source"]) == ("answered", "cloud")


async def test_status_and_infer_speak_to_the_daemon_that_runs(
    sure: Path, short_tmp: Path, free_port: int
) -> None:
    state = ("--state-dir", short_tmp / "agent")
    async with agent(short_tmp, bundles=sure, embedded_port=free_port) as daemon:
        shirt = await asyncio.to_thread(
            said, "infer", IMAGES / "shirt.png", "--model", "fashion", *state
        )
        assert shirt.returncode == 0, shirt.stderr
        answer = json.loads(shirt.stdout)
        assert (answer["status"], answer["source"]) == ("answered", "edge")
        assert answer["label"]
        unknown = await asyncio.to_thread(
            said, "infer", IMAGES / "shirt.png", "--model", "hats", *state
        )
        assert unknown.returncode == 1
        assert "no model of that name" in json.loads(unknown.stdout)["reason"]
        no_image = short_tmp / "noise.png"
        no_image.write_bytes(SHIRT[:8] + b" and no image")
        noise = await asyncio.to_thread(
            said, "infer", no_image, "--model", "fashion", *state
        )
        assert noise.returncode == 1
        assert json.loads(noise.stdout)["status"] == "refused"
        no_image.write_bytes(b"no image")
        noise = await asyncio.to_thread(
            said, "infer", no_image, "--model", "fashion", *state
        )
        assert "none of JSON, MessagePack, PNG" in one_line(noise)
        absent = await asyncio.to_thread(
            said, "infer", short_tmp / "absent", "--model", "fashion", *state
        )
        assert "No such file" in one_line(absent)
        huge = short_tmp / "huge"
        with huge.open("wb") as file:
            file.truncate(30 * 1024**2)
        too_large = await asyncio.to_thread(
            said, "infer", huge, "--model", "fashion", *state
        )
        assert "over the limit" in one_line(too_large)

        shown = await asyncio.to_thread(said, "status", "--json", *state)
        status = json.loads(shown.stdout)
        assert status["models"]["fashion"]["serving"] == "1"
        assert status["counters"]["answered_edge"] == 1
        shown = await asyncio.to_thread(said, "status", *state)
        assert shown.returncode == 0
        for words in ("cloud   not configured", "devices up", "fashion 1", "0 open"):
            assert words in shown.stdout
        mode = (short_tmp / "agent" / "control.sock").stat().st_mode
        assert mode & 0o777 == 0o600
        assert await daemon.end() == 0
    gone = await asyncio.to_thread(said, "status", *state)
    assert "no agent is running" in one_line(gone)


async def test_a_second_daemon_on_the_same_folder_says_so_and_the_first_lives_on(
    sure: Path, short_tmp: Path, free_port: int
) -> None:
    async with agent(short_tmp, bundles=sure, embedded_port=free_port) as daemon:
        for port in (free_port, choose_port()):
            second = await asyncio.to_thread(
                said,
                "run",
                "--state-dir",
                daemon.state_dir,
                "--embedded-port",
                str(port),
                "--bundle",
                sure,
            )
            assert "another agent already runs" in one_line(second)
        assert (await daemon.status())["local"]["up"]
        # One that was killed leaves its socket behind, and that stops nobody.
        await daemon.end(signal.SIGKILL)
        assert (daemon.state_dir / "control.sock").exists()
        await daemon.start()
        assert (await daemon.status())["models"]["fashion"]["serving"] == "1"


def test_what_keeps_it_from_starting_is_told_in_one_line(
    short_tmp: Path, free_port: int
) -> None:
    garbage = short_tmp / "garbage.tar"
    garbage.write_bytes(b"garbage" * 1000)
    (short_tmp / "file").write_text("")
    absent = short_tmp / "absent"
    cases: list[tuple[tuple[str | Path, ...], str]] = [
        (("--embedded-port", str(free_port)), f"listen on 127.0.0.1:{free_port}"),
        (("--cloud-url", "cloud:1883"), "mqtt://user:password@host"),
        (("--cloud-url", "http://me:secret@cloud"), "does not name an MQTT broker"),
        (("--agent-id", "Cam.1"), "agent_id"),
        (("--bundle", absent), "no bundle"),
        (("--bundle", garbage), "not a packed bundle"),
        (("--log-level", "loud"), "log level"),
        (("--trusted-root", absent), str(absent)),
        (("--state-dir", short_tmp / "file" / "x"), "Not a directory"),
    ]

    def run(number: int) -> str:
        own = ("--state-dir", short_tmp / f"agent-{number}")
        port = ("--embedded-port", str(choose_port()))
        return one_line(said("run", *own, *port, *cases[number][0]))

    with socket.create_server(("127.0.0.1", free_port)), ThreadPoolExecutor(3) as some:
        lines = list(some.map(run, range(len(cases))))
    for line, (words, says) in zip(lines, cases, strict=True):
        assert says in line, (words, line)
        assert "secret" not in line


async def test_sigterm_ends_it_within_seconds_with_spills_open_and_no_cloud(
    sure: Path, mosquitto: str, short_tmp: Path
) -> None:
    # An address that swallows everything: the hardest kind of absent.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        cloud_url = f"mqtt://127.0.0.1:{silent.getsockname()[1]}"
        settings = {"bundles": sure, "local_url": mosquitto, "cloud_url": cloud_url}
        async with agent(short_tmp, **settings) as daemon, device(mosquitto) as cam:
            await cam.send("copy", {"id": "open", "inputs": COPY})
            await until(lambda: cam.of("open"))
            for number in (signal.SIGTERM, signal.SIGINT):
                assert await daemon.end(number, within_s=8) == 0
                assert not (daemon.state_dir / "control.sock").exists()
                await daemon.start()
            assert (await daemon.status())["outbox"]["open"] == 1
    assert "Traceback" not in daemon.log.read_text()


async def test_after_kill_9_each_accepted_id_has_exactly_one_final_answer(
    rabbit: Node, pool: WorkerProcess, mosquitto: str, sure: Path, short_tmp: Path
) -> None:
    settings = {
        "agent_id": "agent-2",
        "cloud_url": rabbit.mqtt_url("agent-2"),
        "local_url": mosquitto,
        "bundles": sure,
        "resend_after_s": 1,
    }
    ids = [f"r{number}" for number in range(120)]
    async with agent(short_tmp, **settings) as daemon, device(mosquitto) as cam:
        with pool.paused():
            async with asyncio.TaskGroup() as sends:
                for id_ in ids:
                    sends.create_task(cam.send("copy", {"id": id_, "inputs": COPY}))
                await until(lambda: len(cam.raw) >= 40)
                # In the midst of accepting.
                daemon.process.kill()
            await daemon.process.wait()
            accepted = {each["id"] for each in cam.answers}
            assert len(accepted) >= 40
        await daemon.start()
        # A device sends again what it has heard nothing of.
        for id_ in ids:
            if id_ not in accepted:
                await cam.send("copy", {"id": id_, "inputs": COPY})
        for id_ in ids:
            assert (await cam.final(id_, 90))["status"] == "answered"
        status = await daemon.until_status(
            lambda each: not each["outbox"]["open"] and not each["outbox"]["untold"]
        )
        assert status["outbox"]["answered"] == len(ids)
        for id_ in ids:
            told = [raw for _, raw in cam.raw if is_final(raw, id_)]
            # What was resent may be told again, and is told the same.
            assert len(set(told)) == 1, id_
            assert len(told) == 1 or id_ not in accepted, id_


async def test_kill_9_while_answers_come_loses_none_and_never_tells_two_outcomes(
    rabbit: Node, pool: WorkerProcess, mosquitto: str, sure: Path, short_tmp: Path
) -> None:
    settings = {
        "agent_id": "agent-3",
        "cloud_url": rabbit.mqtt_url("agent-3"),
        "local_url": mosquitto,
        "bundles": sure,
        "resend_after_s": 1,
    }
    ids = [f"r{number}" for number in range(150)]
    async with agent(short_tmp, **settings) as daemon, device(mosquitto) as cam:
        for wanted in (30, 90):
            async with asyncio.TaskGroup() as sends:
                for id_ in ids:
                    if not any(each["final"] for each in cam.of(id_)):
                        sends.create_task(cam.send("copy", {"id": id_, "inputs": COPY}))
                await until(lambda: finals(cam.answers) >= wanted)  # noqa: B023 - awaited here
                daemon.process.kill()
            await daemon.process.wait()
            await daemon.start()
        heard = {each["id"] for each in cam.answers}
        for id_ in ids:
            if id_ not in heard:
                await cam.send("copy", {"id": id_, "inputs": COPY})
        for id_ in ids:
            await cam.final(id_, 90)
        await daemon.until_status(lambda each: not each["outbox"]["untold"])
        for id_ in ids:
            assert len({raw for _, raw in cam.raw if is_final(raw, id_)}) == 1, id_


def is_final(raw: bytes, id_: str) -> bool:
    answer = json.loads(raw)
    return bool(answer["final"] and answer["id"] == id_)


def finals(answers: list[dict[str, object]]) -> int:
    return len({each["id"] for each in answers if each["final"]})
