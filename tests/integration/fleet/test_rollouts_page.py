"""docs/rollouts.md: every command of it as an operator would type them, and its tables."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import aio_pika
import pytest
from typer.testing import CliRunner

from broker.node import Node
from broker.topology import TELEMETRY_QUEUE
from fleet.__main__ import app
from fleet.app import Fleet, run_daemon
from fleet.core.amounts import percent
from fleet.core.gates import DEFAULT_GATES, Unsure
from fleet.settings import FleetSettings
from tests.integration.fleet.obedient import Obedient, obeying
from tests.waiting import until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(90)]

PAGE = Path(__file__).parents[3] / "docs" / "rollouts.md"
TEXT = PAGE.read_text()
NAMES = [f"agent-{number}" for number in range(1, 5)]
# `diff` says so by its exit code: the canaries' rollout has only begun, but as declared.
EXIT_CODES = {"overspill diff fleet.yaml": 0}


def blocks(language: str) -> list[str]:
    return [each.split("```")[0] for each in TEXT.split(f"```{language}\n")[1:]]


def commands() -> list[str]:
    return [line for block in blocks("sh") for line in block.splitlines() if line]


async def type_in(line: str) -> str:
    words = shlex.split(line)
    assert words[0] == "overspill"
    result = await asyncio.to_thread(CliRunner().invoke, app, words[1:])
    assert result.exit_code == EXIT_CODES.get(line, 0), f"{line}\n{result.output}"
    assert "Traceback" not in result.output
    return result.stdout


@pytest.fixture
async def settings(
    logs_apart: None,
    rabbit: Node,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trusted_home: Callable[[Path], Path],
) -> FleetSettings:
    """Where an operator is: version 1 in service, and 2 and 3 to be published."""
    async with await aio_pika.connect(rabbit.amqp_url("admin")) as connection:
        queue = await (await connection.channel()).get_queue(TELEMETRY_QUEUE)
        await queue.purge()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OVERSPILL_FLEET_HOME", str(trusted_home(tmp_path / "home")))
    monkeypatch.setenv("OVERSPILL_FLEET_AMQP_URL", rabbit.amqp_url("fleet"))
    (tmp_path / "fleet.yaml").write_text("".join(blocks("yaml")))
    for version in "123":
        bundle = tmp_path / "bundles" / version
        bundle.mkdir(parents=True)
        (bundle / "m.tflite").write_bytes(version.encode() * 5000)
        manifest = {"format": 1, "name": "fashion", "model_file": "m.tflite"}
        (bundle / "manifest.json").write_text(
            json.dumps({**manifest, "version": version})
        )
    return FleetSettings()


async def test_every_command_of_the_page_does_what_it_says(
    rabbit: Node, settings: FleetSettings
) -> None:
    assert settings.amqp_url is not None
    facts = {"memory_mb": "1024"}
    crew = [
        Obedient(rabbit, name, Path(settings.registry), facts=facts) for name in NAMES
    ]
    stop = asyncio.Event()
    with Fleet(settings) as fleet:
        async with asyncio.TaskGroup() as group:
            group.create_task(run_daemon(fleet, settings.amqp_url, stop))
            async with obeying(crew):
                await until(lambda: len(fleet.devices()) == len(crew))
                await type_in("overspill model publish bundles/1")
                await type_in("overspill rollout start fashion 1 --wait 30")
                said = await _all_of_the_page()
            stop.set()
    assert "for 4 agents" in said["overspill rollout plan fashion 2"]
    assert "done" in said["overspill rollout watch"]
    # The last agents may still be on their way back.
    assert re.search("roll(ed|ing) back", said["overspill rollout history"])
    assert "3 labels changed, 2 rollouts begun" in said["overspill apply fleet.yaml"]
    assert "the fleet is as declared" in said["overspill diff fleet.yaml"]
    assert json.loads(said["overspill apply --schema"])["properties"].keys() == {
        "labels",
        "rollouts",
    }


async def _all_of_the_page() -> dict[str, str]:
    said: dict[str, str] = {}
    for line in commands():
        if "start fashion 3" in line:
            await type_in("overspill model publish bundles/3")
        said[line] = await type_in(line)
    return said


def test_the_table_of_gates_has_their_defaults() -> None:
    rows = [
        [cell.strip() for cell in line.split("|")[1:3]]
        for line in TEXT.splitlines()
        if line.startswith("| `") and line.split("|")[2].strip().endswith("%")
    ]
    assert rows == [[f"`{each.kind}`", percent(each.limit)] for each in DEFAULT_GATES]
    goes_on = [
        f"`{each.kind}`" for each in DEFAULT_GATES if each.unsure is Unsure.GO_ON
    ]
    sentence = TEXT[TEXT.index("`spill`, `latency`") :].split(" only ever stop")[0]
    assert sentence.replace(" and", ",").split(", ") == goes_on
