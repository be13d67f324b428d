"""`overspill broker`, as an operator runs it."""

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from broker.mqtt.target import MqttTarget
from broker.node import Node
from broker.process import alive
from tests.integration.broker.links import mqtt

pytestmark = pytest.mark.integration


def overspill(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "overspill", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )


def document(*arguments: str, folder: Path) -> Any:
    done = overspill(*arguments, "--json", folder=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.timeout(180)  # starts a RabbitMQ and runs ten commands
def test_a_broker_is_started_looked_at_used_and_stopped(short_tmp: Path) -> None:
    try:
        up = document(
            "broker", "up", "--agents", "cam-1", "--models", "m", folder=short_tmp
        )
        assert up["agents"] == ["cam-1"]
        assert up["running"] is True
        passwords = json.loads(Path(up["credentials"]).read_text())["passwords"]
        assert not any(password in json.dumps(up) for password in passwords.values())

        again = document("broker", "up", "--agents", "cam-1", folder=short_tmp)
        assert again["pid"] == up["pid"]

        status = document("broker", "status", folder=short_tmp)
        assert status["queues"]["infer.m.norm"] == 0
        assert status["ports"] == up["ports"]

        url = overspill("broker", "url", "cam-1", folder=short_tmp).stdout.strip()
        assert MqttTarget.from_url(url).password == passwords["cam-1"]
        asyncio.run(publish(url))
        give_up = time.monotonic() + 30
        while queued(short_tmp) != 1:
            assert time.monotonic() < give_up

        other = overspill("broker", "up", "--agents", "cam-2", folder=short_tmp)
        assert other.returncode == 1
        assert "overspill broker down" in one_line(other.stderr)

        assert "stopped" in overspill("broker", "down", folder=short_tmp).stdout
        assert not alive(up["pid"])
        assert overspill("broker", "down", folder=short_tmp).returncode == 0
        assert overspill("broker", "status", folder=short_tmp).returncode == 3
    finally:
        folder = short_tmp / ".overspill" / "broker"
        if (folder / "node.json").exists():
            asyncio.run(Node.load(folder).stop())


def queued(folder: Path) -> int:
    # RabbitMQ counts the messages of a quorum queue every few seconds.
    count = document("broker", "status", folder=folder)["queues"]["infer.m.norm"]
    assert isinstance(count, int)
    return count


async def publish(url: str) -> None:
    async with mqtt(url, "cam-1") as agent:
        await agent.publish("e1/cam-1/up/req/m/norm", b"x")


def one_line(text: str) -> str:
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    assert "Traceback" not in text
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["broker", "up", "--agents", "a.b"], "'a.b' is not a valid id"),
        (["broker", "url", "cam-1"], "no broker in"),
        (["broker", "up", "--folder", "/proc/none"], "/proc/none"),
    ],
)
def test_what_an_operator_can_mend_is_one_line(
    short_tmp: Path, arguments: list[str], words: str
) -> None:
    done = overspill(*arguments, folder=short_tmp)

    assert done.returncode == 1
    assert words in one_line(done.stderr)


@pytest.mark.parametrize(
    "arguments", [["broker", "fly"], ["broker", "up", "--bogus"], ["fly"]]
)
def test_a_wrong_command_line_is_exit_code_2(
    short_tmp: Path, arguments: list[str]
) -> None:
    assert overspill(*arguments, folder=short_tmp).returncode == 2


def test_the_version_is_told(short_tmp: Path) -> None:
    done = overspill("--version", folder=short_tmp)

    assert done.returncode == 0
    assert done.stdout.startswith("overspill ")


def test_broken_state_is_named_with_what_to_do(short_tmp: Path) -> None:
    folder = short_tmp / ".overspill" / "broker"
    folder.mkdir(parents=True)
    (folder / "node.json").write_text("{")

    done = overspill("broker", "status", folder=short_tmp)

    assert done.returncode == 1
    assert "delete it" in one_line(done.stderr)
