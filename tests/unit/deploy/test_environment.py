"""Every variable in the deployment's files is a knob that its program has, and holds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic_settings import BaseSettings

from cloud_worker.settings import WorkerSettings
from deploy import render
from edge_agent.settings import AgentSettings
from fleet.settings import FleetSettings

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "deploy"
PROGRAMS: dict[str, type[BaseSettings]] = {
    "agent": AgentSettings,
    "worker": WorkerSettings,
    "fleet": FleetSettings,
}
VARIABLE = re.compile(r"OVERSPILL_[A-Z_]+")
UNITS = ("agent", "worker")


def known_variables() -> set[str]:
    known = {
        f"OVERSPILL_DEPLOY_{name.upper()}"
        for name in render.DeploySettings.model_fields
    }
    for settings in PROGRAMS.values():
        prefix = settings.model_config["env_prefix"]
        known |= {f"{prefix}{name}".upper() for name in settings.model_fields}
    return known


def committed_files() -> Iterator[Path]:
    for pattern in ("*.yaml", ".env.example", "*/*", "render.py"):
        for file in sorted(DEPLOY.glob(pattern)):
            if file.is_file() and "secrets" not in file.parts and file.suffix != ".pyc":
                yield file


def compose_service(program: str) -> dict[str, Any]:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    service: dict[str, Any] = compose["services"][program]
    return service


def docker_environment(program: str) -> dict[str, str]:
    text = (DEPLOY / "docker" / f"{program}.Dockerfile").read_text()
    return dict(re.findall(r"(OVERSPILL_[A-Z_]+)=(\S+)", text))


def unit_environment(program: str) -> dict[str, str]:
    """The unit's own lines, then the environment file's, which win."""
    unit = (DEPLOY / "systemd" / f"overspill-{program}.service").read_text()
    file = (DEPLOY / "systemd" / f"{program}.env.example").read_text()
    own = re.findall(r"^Environment=(OVERSPILL_[A-Z_]+)=(.*)$", unit, re.MULTILINE)
    given = re.findall(r"^(OVERSPILL_[A-Z_]+)=(.*)$", file, re.MULTILINE)
    return dict([*own, *given])


def settings_from(
    program: str, environment: dict[str, str], patch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """What the program itself makes of an environment.

    Raises:
        AssertionError: a variable has no effect.
    """
    settings = PROGRAMS[program]
    prefix = settings.model_config["env_prefix"]
    for name, value in environment.items():
        assert name.startswith(prefix), f"{name} is not for the {program}"
        patch.setenv(name, value)
    said = settings().model_dump()
    for name in environment:
        assert name.removeprefix(prefix).lower() in said, f"{name} has no effect"
    return said


@pytest.fixture
def rendered(tmp_path: Path) -> dict[str, dict[str, str]]:
    env = tmp_path / ".env"
    env.write_text((DEPLOY / ".env.example").read_text())
    deployment = render.Deployment.read(env)
    passwords = dict.fromkeys(deployment.accounts, "correct-horse-battery")
    return render.environment_files(deployment, passwords, trust=True)


def test_no_file_names_a_variable_that_nothing_reads() -> None:
    example = (DEPLOY / ".env.example").read_text()
    for_compose = set(
        re.findall(r"^(OVERSPILL_DEPLOY_[A-Z_]+)=", example, re.MULTILINE)
    )
    known = known_variables() | for_compose
    files = list(committed_files())
    assert len(files) > 15
    for file in files:
        named = {each for each in VARIABLE.findall(file.read_text()) if each[-1] != "_"}
        assert named <= known, f"{file.name}: {sorted(named - known)}"


@pytest.mark.parametrize("program", sorted(PROGRAMS))
def test_program_takes_what_compose_gives_it(
    program: str, rendered: dict[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = compose_service(program)
    assert service["env_file"] == [f"./secrets/{program}.env"]
    given = {
        **docker_environment(program),
        **service["environment"],
        **rendered[f"{program}.env"],
    }
    said = settings_from(program, given, monkeypatch)
    # What the image says and what compose mounts are the same places.
    targets = {
        mount.split(":")[-2 if mount.endswith(":ro") else -1]
        for mount in service["volumes"]
    }
    for name in (
        "state_dir",
        "models",
        "registry",
        "home",
        "audit_head",
        "trusted_root",
    ):
        if said.get(name) is not None:
            places = {str(said[name]), str(Path(str(said[name])).parent)}
            assert places & targets, f"{name} is not on a volume"


@pytest.mark.parametrize("program", UNITS)
def test_program_takes_what_its_unit_gives_it(
    program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings_from(program, unit_environment(program), monkeypatch)


def test_agent_takes_the_file_rendered_for_its_gateway(
    rendered: dict[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = settings_from("agent", rendered["agents/gateway-1.env"], monkeypatch)
    assert said["agent_id"] == "gateway-1"
    assert said["cloud_url"] == "mqtt://gateway-1:correct-horse-battery@127.0.0.1:1883"
    assert (
        "OVERSPILL_AGENT_STATE_DIR=/var/lib/overspill-agent"
        in (DEPLOY / "systemd" / "overspill-agent.service").read_text()
    )


@pytest.mark.parametrize("program", ["worker", "fleet"])
def test_containers_outlive_the_drain(program: str) -> None:
    drain_s = PROGRAMS[program]().model_dump()["drain_s"]
    grace = compose_service(program)["stop_grace_period"]
    assert float(grace.removesuffix("s")) >= drain_s + 10


def test_worker_unit_outlives_the_drain() -> None:
    unit = (DEPLOY / "systemd" / "overspill-worker.service").read_text()
    found = re.search(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert found is not None
    assert float(found.group(1)) >= WorkerSettings().drain_s + 10
    # Else the child that runs the model is stopped before the drain begins.
    assert "\nKillMode=mixed\n" in unit
