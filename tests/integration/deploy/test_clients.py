"""Docker's and systemd's own programs judge the files; neither needs its daemon."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import render

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=50, check=False
    )


@pytest.fixture(scope="session")
def compose_client() -> list[str]:
    for client in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(client[0]) and run(*client, "version").returncode == 0:
            return client
    pytest.skip("no docker compose on this machine (no engine is needed for this)")


@pytest.fixture(scope="session")
def systemd_analyze() -> str:
    found = shutil.which("systemd-analyze")
    if found is None:
        pytest.skip(
            "no systemd-analyze on this machine (Debian: apt-get install systemd)"
        )
    return found


@pytest.fixture
def deployment(tmp_path: Path) -> Path:
    """A copy of the repository's files with this deployment's secrets rendered."""
    copy = tmp_path / "deploy"
    ignore = shutil.ignore_patterns("secrets", ".env", "__pycache__")
    shutil.copytree(DEPLOY, copy, ignore=ignore)
    shutil.copy(copy / ".env.example", copy / ".env")
    render.write_secrets(render.Deployment.read(copy / ".env"), copy / "secrets")
    return copy


def test_docker_compose_reads_the_rendered_deployment(
    compose_client: list[str], deployment: Path
) -> None:
    ran = run(
        *compose_client,
        *("-f", deployment / "compose.yaml", "--profile", "edge"),
        *("config", "--format", "json"),
    )
    assert ran.returncode == 0, ran.stderr
    assert "variable is not set" not in ran.stderr
    services = json.loads(ran.stdout)["services"]
    assert set(services) == {"rabbitmq", "worker", "fleet", "mosquitto", "agent"}
    url = services["worker"]["environment"]["OVERSPILL_WORKER_AMQP_URL"]
    assert re.fullmatch(r"amqp://worker:[\w-]{32}@rabbitmq:5672/", url)


def test_docker_compose_refuses_to_start_without_passwords(
    compose_client: list[str], deployment: Path
) -> None:
    shutil.rmtree(deployment / "secrets")
    ran = run(*compose_client, "-f", deployment / "compose.yaml", "config")
    assert ran.returncode != 0
    assert "secrets" in ran.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_verifies_the_unit(
    systemd_analyze: str, unit: Path, tmp_path: Path
) -> None:
    # The program is not in /opt/overspill here: any executable stands in for it.
    text = unit.read_text()
    changed = re.sub(
        r"^ExecStart=\S+", f"ExecStart={sys.executable}", text, flags=re.MULTILINE
    )
    assert changed != text
    copy = tmp_path / unit.name
    copy.write_text(changed)
    ran = run(systemd_analyze, "verify", "--recursive-errors=no", copy)
    assert (ran.returncode, ran.stderr) == (0, "")
    copy.write_text(changed.replace("ProtectSystem=strict", "ProtectSystem=stricter"))
    ran = run(systemd_analyze, "verify", "--recursive-errors=no", copy)
    assert "stricter" in ran.stderr, "systemd-analyze notices nothing"


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_unit_exposes_little(systemd_analyze: str, unit: Path) -> None:
    ran = run(systemd_analyze, "security", "--offline=true", "--no-pager", unit)
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", ran.stdout)
    if found is None:
        pytest.skip(f"this systemd-analyze cannot judge offline: {ran.stderr.strip()}")
    assert float(found.group(1)) <= 2.0
