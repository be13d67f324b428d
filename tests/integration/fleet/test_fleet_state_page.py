"""docs/fleet-state.md: every command of it as an operator would type them."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from broker.messages import Report, SlotReport
from fleet.__main__ import app
from fleet.adapters.state.database import FleetDatabase
from fleet.core.devices import observe
from lifecycle.clock import SystemClock

PAGE = Path(__file__).parents[3] / "docs" / "fleet-state.md"
TEXT = PAGE.read_text()
SERVER = "postgresql://overspill@db.example.net/fleet"


def commands() -> list[str]:
    blocks = [each.split("```")[0] for each in TEXT.split("```sh\n")[1:]]
    return [line for block in blocks for line in block.splitlines() if line]


def type_in(line: str) -> str:
    words = shlex.split(line, comments=True)
    assert words[0] == "overspill"
    result = CliRunner().invoke(app, words[1:])
    assert result.exit_code == 0, f"{line}\n{result.output}"
    assert "Traceback" not in result.output
    return result.stdout


@pytest.fixture
def home(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trusted_home: Callable[[Path], Path],
) -> Path:
    """Two cameras that have reported."""
    home = trusted_home(tmp_path / "home")
    monkeypatch.setenv("OVERSPILL_FLEET_HOME", str(home))
    monkeypatch.delenv("OVERSPILL_FLEET_AMQP_URL", raising=False)
    with FleetDatabase(home / "fleet.db") as database, database.writing() as ledger:
        for name in ("cam-17", "cam-18"):
            slots = [SlotReport(model="fashion", active="1")]
            report = Report(agent=name, at_ms=1, slots=slots)
            now_ms = SystemClock().wall_ms()
            ledger.keep_device(observe(None, name, report, now_ms))
    return home


def test_every_command_of_the_page_does_what_it_says(
    home: Path, tmp_path: Path
) -> None:
    typed: dict[str, str] = {}
    copy = tmp_path / "copy.db"
    for line in commands():
        meant = line.replace(SERVER, str(copy))
        if "HASH" in meant:
            noted = json.loads(type_in("overspill audit verify --json"))["head"]
            meant = meant.replace("HASH", noted["digest"])
        typed[shlex.join(shlex.split(line, comments=True))] = type_in(meant)
    assert "cam-17" in typed["overspill device show cam-17"]
    assert "retired" in typed["overspill device retire cam-17 --reason flooded"]
    assert f"rows copied to {copy}" in typed[f"overspill fleet copy --to {SERVER}"]
    assert "state.copy" in typed["overspill audit list"]
    assert "--head is of it" in typed["overspill audit verify --head HASH"]
    assert len(typed) >= 12


def test_every_command_that_the_text_names_is_there() -> None:
    named = set(re.findall(r"`overspill ([a-z]+(?: [a-z]+)?)", TEXT))
    assert {"fleet run", "audit verify", "device list", "model publish"} <= named
    for each in named:
        assert "Usage" in type_in(f"overspill {each} --help")
