"""The systemd units say what a gateway needs; systemd itself judges them elsewhere."""

from __future__ import annotations

import configparser
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "deploy" / "systemd"


def read(program: str) -> dict[str, str]:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign] # keep the case
    unit.read(FOLDER / f"overspill-{program}.service")
    return {**unit["Unit"], **unit["Service"], **unit["Install"]}


@pytest.fixture(params=["agent", "worker"])
def program(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_unit_runs_a_command_of_this_distribution(program: str) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    command, *arguments = read(program)["ExecStart"].split()
    assert Path(command).name in scripts
    assert arguments == ["run"]


def test_unit_is_never_given_up(program: str) -> None:
    unit = read(program)
    assert unit["Restart"] == "always"
    assert float(unit["RestartSec"]) >= 1
    assert unit["StartLimitIntervalSec"] == "0"
    assert unit["WantedBy"] == "multi-user.target"


def test_a_program_that_stalls_is_started_again(program: str) -> None:
    unit = read(program)
    assert (unit["Type"], unit["NotifyAccess"]) == ("notify", "main")
    assert 10 <= float(unit["WatchdogSec"]) <= 60
    # Loading models takes longer than systemd waits by itself.
    assert unit["TimeoutStartSec"] == "infinity"


def test_secrets_come_from_a_file_and_not_from_the_unit(program: str) -> None:
    assert read(program)["EnvironmentFile"] == f"/etc/overspill/{program}.env"
    assert "://" not in (FOLDER / f"overspill-{program}.service").read_text()


def test_agent_starts_without_a_network() -> None:
    assert "online" not in read("agent")["After"]


def test_program_has_no_rights_it_does_not_use(program: str) -> None:
    unit = read(program)
    assert unit["DynamicUser"] == "yes"
    assert unit["NoNewPrivileges"] == "yes"
    assert unit["ProtectSystem"] == "strict"
    assert unit["CapabilityBoundingSet"] == ""
