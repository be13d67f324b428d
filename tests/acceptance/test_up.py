"""`overspill up`: one system left running, and a person who plays with it."""

from __future__ import annotations

import base64
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import IO, Any

import pytest

from broker.ports import is_free
from broker.process import alive
from edge_agent.app import Agent
from edge_agent.settings import AgentSettings

pytestmark = pytest.mark.acceptance

IMAGES = Path(__file__).parents[2] / "examples" / "fashion" / "images"
UP = [sys.executable, "-m", "overspill", "up"]
# The first test waits until the whole system is up, TensorFlow twice included.
UP_TIMEOUT_S = 300


@dataclass(frozen=True)
class Running:
    """A system that is up, and what it said of itself."""

    process: subprocess.Popen[str]
    said: dict[str, Any]

    @property
    def folder(self) -> Path:
        return Path(self.said["folder"])

    @property
    def device_port(self) -> str:
        return str(self.said["agents"][0]["port"])

    @property
    def ports(self) -> list[int]:
        agents = [each["port"] for each in self.said["agents"]]
        return [*agents, *self.said["rabbitmq"]["ports"].values()]

    @property
    def pids(self) -> list[int]:
        return [*self.said["processes"].values(), *self.said["rabbitmq"]["pids"]]


@pytest.fixture(scope="module")
def up() -> Iterator[Running]:
    folder = Path(tempfile.mkdtemp(prefix="ou"))
    command = [*UP, "--folder", str(folder), "--json"]
    with (
        (folder / "up.err").open("w") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, (folder / "up.err").read_text()
            yield Running(process, json.loads(line))
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(40)
            finally:
                process.kill()
    shutil.rmtree(folder)


@contextmanager
def listening(up: Running, device: str) -> Iterator[Queue[dict[str, Any]]]:
    """What `mosquitto_sub` hears on a device's topic, once it has subscribed."""
    # Into a pipe it would keep its lines to itself.
    command = ["stdbuf", "-oL", "mosquitto_sub", "-d"]
    command += ["-h", "127.0.0.1", "-p", up.device_port]
    heard: Queue[dict[str, Any]] = Queue()
    subscribed = threading.Event()

    def read(lines: IO[str]) -> None:
        for line in lines:
            if line.startswith("Subscribed"):
                subscribed.set()
            elif line.startswith("{"):
                heard.put(json.loads(line))

    with subprocess.Popen(
        [*command, "-t", f"answer/{device}"], stdout=subprocess.PIPE, text=True
    ) as listener:
        assert listener.stdout is not None
        thread = threading.Thread(target=read, args=(listener.stdout,))
        thread.start()
        try:
            assert subscribed.wait(10), "mosquitto_sub did not subscribe"
            yield heard
        finally:
            listener.terminate()
            thread.join(10)


def publish(up: Running, topic: str, *how: str, said: bytes | None = None) -> None:
    subprocess.run(
        ["mosquitto_pub", "-h", "127.0.0.1", "-p", up.device_port, "-t", topic, *how],
        input=said,
        check=True,
        timeout=30,
    )


def final(heard: Queue[dict[str, Any]]) -> dict[str, Any]:
    while not (answer := heard.get(timeout=45))["final"]:
        assert answer["status"] == "accepted"
    return answer


@pytest.mark.timeout(UP_TIMEOUT_S)
def test_a_published_image_is_heard_as_a_labelled_answer(up: Running) -> None:
    with listening(up, "cam1") as heard:
        publish(up, "infer/cam1/fashion", "-f", str(IMAGES / "shirt.png"))
        answer = final(heard)

    assert (answer["status"], answer["device"]) == ("answered", "cam1")
    # The first version is unsure of this one, so the cloud has said what it is.
    assert (answer["label"], answer["source"]) == ("Shirt", "cloud")
    assert answer["reason"] == "hard"


@pytest.mark.timeout(UP_TIMEOUT_S)
def test_the_same_in_json_is_answered_under_its_id(up: Running) -> None:
    image = base64.b64encode((IMAGES / "shirt.png").read_bytes()).decode()
    request = {"id": "shirt-1", "image": image, "deadline_ms": 15_000}

    with listening(up, "cam1") as heard:
        publish(up, "infer/cam1/fashion", "-s", said=json.dumps(request).encode())
        answer = final(heard)

    assert (answer["id"], answer["label"]) == ("shirt-1", "Shirt")


@pytest.mark.timeout(UP_TIMEOUT_S)
def test_an_image_too_large_for_the_edge_is_answered_by_the_cloud(up: Running) -> None:
    with listening(up, "cam1") as heard:
        publish(up, "infer/cam1/fashion", "-f", str(IMAGES / "wardrobe.jpg"))
        answer = final(heard)

    assert (answer["source"], answer["reason"]) == ("cloud", "oversized")


@pytest.mark.timeout(UP_TIMEOUT_S)
def test_what_is_no_request_is_refused_with_a_reason(up: Running) -> None:
    with listening(up, "cam1") as heard:
        publish(up, "infer/cam1/fashion", "-m", '{"image": "not base64"}')
        answer = final(heard)

    assert answer["status"] == "refused"
    assert "base64" in answer["reason"]


@pytest.mark.timeout(UP_TIMEOUT_S)
def test_the_operators_commands_work_with_the_file_that_is_printed(up: Running) -> None:
    shell = f"set -a; . {up.said['operator_file']}; {sys.executable} -m overspill"

    ran = subprocess.run(
        ["sh", "-c", f"{shell} device list --json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert [each["agent"] for each in json.loads(ran.stdout)] == [
        "agent-1",
        "agent-2",
        "agent-3",
    ]
    assert Path(up.said["operator_file"]).stat().st_mode & 0o077 == 0


@pytest.mark.timeout(UP_TIMEOUT_S)
def test_a_second_system_in_the_same_folder_is_refused_in_one_line(
    up: Running,
) -> None:
    ran = subprocess.run(
        [*UP, "--folder", str(up.folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert ran.returncode == 1
    assert "a system already runs in" in ran.stderr.splitlines()[-1]


@pytest.mark.timeout(UP_TIMEOUT_S)
def test_passwords_are_neither_printed_nor_on_a_command_line(up: Running) -> None:
    node = json.loads(Path(up.said["rabbitmq"]["credentials"]).read_text())
    lines = [Path(f"/proc/{pid}/cmdline").read_bytes().decode() for pid in up.pids]

    for password in node["passwords"].values():
        assert password not in json.dumps(up.said)
        assert not any(password in line for line in lines)


def readme_block(heading: str, language: str) -> str:
    """The first code block of a language under a heading of the README."""
    text = (Path(__file__).parents[2] / "README.md").read_text()
    section = text.split(f"## {heading}\n")[1]
    return section.split(f"```{language}\n")[1].split("```")[0]


@pytest.mark.timeout(UP_TIMEOUT_S)
def test_the_commands_of_the_readme_give_the_answer_it_shows(up: Running) -> None:
    start, listen, say = readme_block("Play with it", "sh").strip().splitlines()
    assert start == ".venv/bin/overspill up"
    variables = {**os.environ, "PORT": up.device_port}
    with subprocess.Popen(
        ["bash", "-c", "exec stdbuf -oL " + listen.removesuffix("&")],
        stdout=subprocess.PIPE,
        text=True,
        env=variables,
    ) as listener:
        assert listener.stdout is not None
        try:
            # The listener may not have subscribed yet, and then hears the next one.
            heard: dict[str, Any] = {}
            while heard.get("status") != "answered":
                subprocess.run(
                    ["bash", "-c", say],
                    env=variables,
                    cwd=Path(__file__).parents[2],
                    check=True,
                    timeout=30,
                )
                ready, _, _ = select.select([listener.stdout], [], [], 3)
                if ready:
                    heard = json.loads(listener.stdout.readline())
        finally:
            listener.terminate()
    shown = json.loads(readme_block("Play with it", "json"))
    assert heard.keys() - {"outputs"} == shown.keys()
    assert (heard["label"], heard["reason"]) == (shown["label"], shown["reason"])


async def test_the_python_of_the_readme_answers(tmp_path: Path) -> None:
    settings = AgentSettings(
        agent_id="embedded",
        state_dir=tmp_path,
        local=False,
        bundles=[IMAGES.parent / "edge" / "small"],
    )
    names: dict[str, Any] = {
        "Agent": Agent,
        "settings": settings,
        "image": (IMAGES / "shirt.png").read_bytes(),
    }
    code = textwrap.indent(readme_block("Play with it", "python"), "    ")
    exec(f"async def run():\n{code}\n    return answer", names)
    answer = await names["run"]()
    assert (answer.status, answer.label) == ("answered", "Shirt")


def test_the_readme_names_only_targets_that_make_has() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    targets = set(re.findall(r"^make (\w+)", text, re.MULTILINE))
    assert {"demo", "test"} <= targets
    for target in targets:
        subprocess.run(
            ["make", "--dry-run", target],
            cwd=Path(__file__).parents[2],
            check=True,
            capture_output=True,
            timeout=60,
        )


@pytest.mark.timeout(UP_TIMEOUT_S)
def test_ctrl_c_leaves_no_process_and_no_port(up: Running) -> None:
    """The last test here: it ends the system that the others use."""
    assert all(alive(pid) for pid in up.pids)
    assert not any(is_free(port) for port in up.ports)

    os.kill(up.process.pid, signal.SIGINT)

    assert up.process.wait(40) == 130
    assert [pid for pid in up.pids if alive(pid)] == []
    assert [port for port in up.ports if not is_free(port)] == []
    said = (up.folder / "up.err").read_text()
    assert said.splitlines()[-1].startswith("stopped")
    assert "Traceback" not in said
