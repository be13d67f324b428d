"""What an operator types from plan to rollback, with the daemon, RabbitMQ and agents."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from typer.testing import CliRunner

from broker.messages import HealthReport
from broker.node import Node
from broker.topology import TELEMETRY_QUEUE
from fleet.__main__ import app
from fleet.app import Fleet, run_daemon
from fleet.settings import FleetSettings
from tests.integration.fleet.obedient import ILL, WELL, Obedient, obeying

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

# As the broker of the tests knows them.
NAMES = [f"agent-{number}" for number in range(1, 5)]
AT_ONCE = ("--waves", "all", "--probation", "0s", "--wait", "20")


@pytest.fixture
async def settings(
    logs_apart: None,
    rabbit: Node,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trusted_home: Callable[[Path], Path],
) -> FleetSettings:
    async with await aio_pika.connect(rabbit.amqp_url("admin")) as connection:
        queue = await (await connection.channel()).get_queue(TELEMETRY_QUEUE)
        await queue.purge()
    monkeypatch.setenv("OVERSPILL_FLEET_HOME", str(trusted_home(tmp_path / "home")))
    monkeypatch.setenv("OVERSPILL_FLEET_AMQP_URL", rabbit.amqp_url("fleet"))
    return FleetSettings()


async def begin(*words: str | Path) -> Process:
    """A command as an operator types it."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "fleet", *map(str, words), stdout=PIPE, stderr=PIPE
    )


async def ended(command: Process, *, exit_code: int = 0) -> str:
    async with asyncio.timeout(40):
        stdout, stderr = await command.communicate()
    assert command.returncode == exit_code, stderr.decode() + stdout.decode()
    return stdout.decode()


async def say(*words: str | Path, exit_code: int = 0) -> Any:
    """Type a command, and read its JSON."""
    typed = [*map(str, words), "--json"]
    result = await asyncio.to_thread(CliRunner().invoke, app, typed)
    assert result.exit_code == exit_code, result.output
    return json.loads(result.stdout)


async def publish(folder: Path, *versions: str) -> None:
    for version in versions:
        source = folder / f"bundle-{version}"
        source.mkdir()
        (source / "m.tflite").write_bytes(version.encode() * 1000)
        said = {"format": 1, "name": "fashion", "version": version}
        manifest = {**said, "model_file": "m.tflite"}
        (source / "manifest.json").write_text(json.dumps(manifest))
        await say("model", "publish", source)


def does(version: str) -> HealthReport:
    return ILL if version == "bad" else WELL


@asynccontextmanager
async def fleet_of(
    rabbit: Node, settings: FleetSettings, **agents: Any
) -> AsyncIterator[list[Obedient]]:
    """The daemon and agents that it has heard of."""
    assert settings.amqp_url is not None
    crew = [
        Obedient(
            rabbit,
            name,
            Path(settings.registry),
            health=does,
            facts={"memory_mb": str(256 * (1 + number))},
            **agents,
        )
        for number, name in enumerate(NAMES)
    ]
    stop = asyncio.Event()
    with Fleet(settings) as fleet:
        async with asyncio.TaskGroup() as group:
            group.create_task(run_daemon(fleet, settings.amqp_url, stop))
            async with obeying(crew):
                async with asyncio.timeout(20):
                    while len(fleet.devices()) < len(crew):  # noqa: ASYNC110 - another thread writes it
                        await asyncio.sleep(0.05)
                yield crew
            stop.set()


async def lines(command: Process) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (await ended(command)).splitlines()]


async def line_with(command: Process, **said: Any) -> dict[str, Any]:
    """The next line of a watch that says this."""
    assert command.stdout is not None
    async with asyncio.timeout(20):
        while line := await command.stdout.readline():
            read: dict[str, Any] = json.loads(line)
            if said.items() <= read.items():
                return read
    raise AssertionError(f"no line said {said}")


async def test_a_version_goes_in_waves_a_person_approves_and_takes_it_back(
    rabbit: Node, settings: FleetSettings, tmp_path: Path
) -> None:
    await publish(tmp_path, "1", "2")
    async with fleet_of(rabbit, settings) as crew:
        await say("rollout", "start", "fashion", "1", *AT_ONCE)

        where = ("--where", "memory_mb >= 512")
        staged = ("--waves", "1,60%", "--soak", "0s", "--approve", "first")
        planned = await say("rollout", "plan", "fashion", "2", *where, *staged)
        assert len(planned["eligible"]) == 3
        assert [each["agents"] for each in planned["waves"]] == [1, 1, 1]
        assert 0 < planned["bytes"] < 3 * 10_000
        assert planned["way_back"] == "1"

        begun = await say(
            *("rollout", "start", "fashion", "2", *where, *staged, "--probation", "0s")
        )
        watching = await begin("rollout", "watch", "--json")
        first = await line_with(watching, change="seen")
        assert first["generation"] == begun["generation"]
        asks = first
        while asks["state"] != "awaiting_approval":
            asks = await line_with(watching, change="state")
        assert "wave 1" in asks["reason"]
        assert [each.active for each in crew].count("2") == 1

        await say("rollout", "approve", "--reason", "looks well")
        await line_with(watching, change="wave", wave=2)
        done = (await lines(watching))[-1]
        assert (done["change"], done["state"]) == ("state", "done")
        assert [each.active for each in crew].count("2") == 3

        back = await say("rollout", "rollback", "--wait", "20")
        assert back["state"] == "rolled_back"
        assert [each.active for each in crew] == ["1"] * 4
        (history,) = await say("rollout", "history", str(begun["generation"]))
        what = [each["what"] for each in history["events"]]
        assert what[0] == "start"
        assert {"tell", "ask", "approve", "finish", "roll_back", "all_back"} <= {*what}
        reasons = [each.get("reason") for each in history["events"]]
        assert "looks well" in reasons


async def test_a_bad_version_is_stopped_in_its_first_wave_and_taken_back(
    rabbit: Node, settings: FleetSettings, tmp_path: Path
) -> None:
    await publish(tmp_path, "1", "bad")
    async with fleet_of(rabbit, settings) as crew:
        await say("rollout", "start", "fashion", "1", *AT_ONCE)
        staged = ("--waves", "2,all", "--soak", "30s", "--probation", "0s")
        await say("rollout", "start", "fashion", "bad", *staged)
        said = await ended(await begin("rollout", "watch"), exit_code=1)
        assert "rolled back: agreement: " in said.splitlines()[-1]
        assert [each.active for each in crew] == ["1"] * 4

        # Nobody begins it again by declaring it.
        file = tmp_path / "fleet.yaml"
        file.write_text("rollouts: [{model: fashion, version: bad}]")
        (blocked,) = (await say("apply", file, exit_code=1))["rollouts"]
        assert blocked["change"] == "blocked"
        assert "declare another version" in blocked["reason"]


async def test_a_paused_rollout_tells_nobody_and_goes_on_when_it_is_resumed(
    rabbit: Node, settings: FleetSettings, tmp_path: Path
) -> None:
    await publish(tmp_path, "1")
    async with fleet_of(rabbit, settings, refuses={"1": "no such operator"}) as crew:
        staged = ("--waves", "2,all", "--probation", "0s", "--on-failure", "pause")
        await say("rollout", "start", "fashion", "1", *staged, "--soak", "1h")
        paused = await say("rollout", "pause", "--reason", "lunch")
        assert (paused["state"], paused["reason"]) == ("paused", "lunch")
        resumed = await say("rollout", "resume")
        assert resumed["state"] in {"running", "paused"}
        ended_ = await say("rollout", "abort", "1")
        assert ended_["state"] == "aborted"
        assert all(each.active is None for each in crew)
        (status,) = (await say("rollout", "status", "fashion"))["rollouts"]
        assert sum(each["wave"] == 1 for each in status["agents"]) == 2


async def test_a_declared_fleet_is_applied_once_and_then_as_declared(
    rabbit: Node, settings: FleetSettings, tmp_path: Path
) -> None:
    await publish(tmp_path, "1", "2")
    file = tmp_path / "fleet.yaml"
    declared = """
labels:
  agent-1: {group: canary}
  agent-2: {group: canary, site: lyon}
rollouts:
  - {model: fashion, version: VERSION, waves: all, policy: {probation: 0s}}
  - model: fashion
    version: 2
    where: group=canary
    waves: "1"
    soak: 0s
    gates: off
    policy: {probation: 0s}
"""
    file.write_text(declared.replace("VERSION", "1"))
    async with fleet_of(rabbit, settings) as crew:
        differs = await say("diff", file, exit_code=2)
        assert [each["change"] for each in differs["rollouts"]] == ["start", "start"]
        assert len(differs["labels"]) == 3
        assert (await say("apply", file, "--dry-run")) == differs

        applied = await say("apply", file)
        assert applied["started"] == [1, 2]
        watching = await begin("rollout", "watch", "2")
        await ended(watching)
        served = [each.active for each in crew]
        assert served == ["2", "2", "1", "1"]

        again = await say("apply", file)
        assert (again["differs"], again["started"]) == (False, [])
        assert (await say("diff", file))["differs"] is False

        # What is for all takes the canaries' agents, so theirs is begun again as well.
        file.write_text(declared.replace("VERSION", "2"))
        assert len((await say("apply", file))["started"]) == 2
        assert (await say("diff", file))["differs"] is False
