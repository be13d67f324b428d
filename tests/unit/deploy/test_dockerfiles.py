"""The Dockerfiles, as far as they can be judged without building them."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "deploy" / "docker"
PROGRAMS = {"worker": "cloud", "agent": "edge", "fleet": "fleet"}
KNOWN = {
    *("ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV"),
    *("USER", "STOPSIGNAL", "ENTRYPOINT", "CMD"),
}


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction, with its continued lines joined."""

    word: str
    rest: str


def read(program: str) -> list[Instruction]:
    text = (FOLDER / f"{program}.Dockerfile").read_text()
    text = text.replace("${LOCK}", PROGRAMS[program])
    lines = [line for line in text.splitlines() if line.strip() and line[0] != "#"]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [
        Instruction(word, rest.strip())
        for word, _, rest in (line.partition(" ") for line in joined.splitlines())
    ]


def last_stage(program: str) -> list[Instruction]:
    steps = read(program)
    start = max(i for i, step in enumerate(steps) if step.word == "FROM")
    return steps[start:]


def only(steps: list[Instruction], word: str) -> str:
    (found,) = [step.rest for step in steps if step.word == word]
    return found


def copied_from_the_repository(program: str) -> list[str]:
    sources: list[str] = []
    for step in read(program):
        if step.word == "COPY" and "--from=" not in step.rest:
            sources += shlex.split(step.rest)[:-1]
    return sources


@pytest.fixture(params=sorted(PROGRAMS))
def program(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_instruction_is_one_that_docker_knows(program: str) -> None:
    assert {step.word for step in read(program)} <= KNOWN


def test_what_is_copied_exists_and_enters_the_context(program: str) -> None:
    ignore = (FOLDER / f"{program}.Dockerfile.dockerignore").read_text().split("\n")
    assert "*" in ignore
    admitted = {line[1:] for line in ignore if line.startswith("!")}
    for source in copied_from_the_repository(program):
        assert (ROOT / source).exists(), source
        assert source.split("/")[0] in admitted, source
    used = {source.split("/")[0] for source in copied_from_the_repository(program)}
    assert admitted == used


def test_the_wheel_is_built_of_every_package(program: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    copied = {source.rstrip("/") for source in copied_from_the_repository(program)}
    assert set(packages) <= copied
    assert {"pyproject.toml", "README.md", "LICENSE"} <= copied


def test_every_install_is_held_to_hashes(program: str) -> None:
    commands = [
        command.strip()
        for step in read(program)
        if step.word == "RUN"
        for command in step.rest.split("&&")
    ]
    installs = [command for command in commands if "pip install" in command]
    assert len(installs) == 3
    for command in installs:
        by_hash = "--require-hashes -r requirements/" in " ".join(command.split())
        own_wheel = "--no-index" in command and "--no-deps" in command
        assert by_hash or own_wheel, command
    (build,) = [command for command in commands if command.startswith("uv build")]
    assert "--build-constraints requirements/dev.lock" in build
    assert "--require-hashes" in build
    assert any(f"requirements/{PROGRAMS[program]}.lock" in one for one in installs)


def test_no_index_host_is_named(program: str) -> None:
    text = (FOLDER / f"{program}.Dockerfile").read_text()
    assert "://" not in text
    assert "index-url" not in text


def test_base_images_are_pinned_to_a_minor_version(program: str) -> None:
    steps = read(program)
    arguments = dict(step.rest.split("=") for step in steps if step.word == "ARG")
    assert arguments["PYTHON"] == "3.12"
    assert arguments.get("LOCK", PROGRAMS[program]) == PROGRAMS[program]
    bases = [step.rest.split()[0] for step in steps if step.word == "FROM"]
    assert bases == ["python:${PYTHON}-slim"] * 2


def test_the_program_runs_as_nobody_special_and_hears_sigterm(program: str) -> None:
    stage = last_stage(program)
    user = only(stage, "USER")
    created = next(step.rest for step in stage if "useradd" in step.rest)
    assert user == "overspill"
    assert re.search(rf"--uid 10001 .*\b{user}\b", created)
    assert only(stage, "STOPSIGNAL") == "SIGTERM"
    # A shell in front would take the signal and keep it.
    entry = json.loads(only(stage, "ENTRYPOINT"))
    arguments = json.loads(only(stage, "CMD"))
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert Path(entry[0]).name in scripts
    assert arguments[-1] == "run"


def test_folders_that_volumes_cover_belong_to_the_program(program: str) -> None:
    stage = last_stage(program)
    made = next(step.rest for step in stage if "install -d -o overspill" in step.rest)
    environment = next(step.rest for step in stage if step.word == "ENV")
    for folder in re.findall(r"=(/var/lib/overspill/\S+)", environment):
        assert folder in made.split()


@pytest.mark.parametrize("lock", ["edge", "cloud", "fleet", "dev"])
def test_locked_packages_are_ones_that_pip_would_take(lock: str) -> None:
    # uv resolves without looking at the upper bound of a package's Requires-Python,
    # and pip does not: such a lock installs with the one and not with the other.
    text = (ROOT / "requirements" / f"{lock}.lock").read_text()
    assert "backports-strenum==1.3" not in text, "1.3 refuses Python 3.11 and later"
