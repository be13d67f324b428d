"""What the deployment starts is a command that the program has."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
DEPLOY = ROOT / "deploy"
# Starting an interpreter with every import of a program, on a busy machine.
pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]


def commands() -> Iterator[list[str]]:
    for file in sorted((DEPLOY / "docker").glob("*.Dockerfile")):
        words = dict(
            re.findall(r"^(ENTRYPOINT|CMD) (.*)$", file.read_text(), re.MULTILINE)
        )
        yield [*json.loads(words["ENTRYPOINT"]), *json.loads(words["CMD"])]
    for file in sorted((DEPLOY / "systemd").glob("*.service")):
        yield from (
            x.split()
            for x in re.findall(r"^ExecStart=(.*)$", file.read_text(), re.MULTILINE)
        )
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    for service in compose["services"].values():
        check = service.get("healthcheck", {}).get("test", ["CMD", ""])
        if check[1].startswith("overspill"):
            yield check[1:]
    yield ["overspill", "model", "publish"]
    yield ["overspill", "device", "list"]


@pytest.mark.parametrize(
    "command", sorted({(Path(c[0]).name, *c[1:]) for c in commands()}), ids=" ".join
)
def test_command_exists(command: tuple[str, ...]) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts[command[0]].partition(":")
    start = f"from {module} import {function}; {function}()"
    ran = subprocess.run(
        [sys.executable, "-c", start, *command[1:], "--help"],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "Usage" in ran.stdout
