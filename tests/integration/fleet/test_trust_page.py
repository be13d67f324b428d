"""Every command of docs/trust.md, in its order, as an operator would type them."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fleet.__main__ import app

PAGE = Path(__file__).parents[3] / "docs" / "trust.md"


def sections() -> Iterator[tuple[str, list[str]]]:
    """Each heading of the page and the shell commands under it."""
    for section in PAGE.read_text().split("\n## ")[1:]:
        heading, _, text = section.partition("\n")
        blocks = text.split("```sh\n")[1:]
        lines = [line for each in blocks for line in each.split("```")[0].splitlines()]
        if lines:
            yield heading, lines


COMMANDS = dict(sections())
DEVELOPMENT = "To try things out"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where an operator is: two bundles, a model of the pool, and a passphrase."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OVERSPILL_FLEET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OVERSPILL_FLEET_PASSPHRASE", "open sesame")
    for version in ("1", "2"):
        bundle = tmp_path / "bundles" / version
        bundle.mkdir(parents=True)
        (bundle / "m.tflite").write_bytes(version.encode() * 100)
        manifest = {"format": 1, "name": "fashion", "model_file": "m.tflite"}
        (bundle / "manifest.json").write_text(
            json.dumps({**manifest, "version": version})
        )
    pool = tmp_path / "models" / "fashion" / "2"
    pool.mkdir(parents=True)
    (pool / "model.keras").write_bytes(b"model")
    return tmp_path


def type_in(line: str) -> None:
    words = shlex.split(line)
    if words[0] != "overspill":
        subprocess.run(["sh", "-ec", line], check=True)
        return
    result = CliRunner().invoke(app, words[1:])
    assert result.exit_code == 0, f"{line}\n{result.output}"
    assert "Traceback" not in result.output


def test_what_is_said_for_trying_things_out_works(folder: Path) -> None:
    for line in COMMANDS[DEVELOPMENT]:
        type_in(line)


def test_what_is_said_for_real_devices_works_to_the_end(folder: Path) -> None:
    later = [lines for heading, lines in COMMANDS.items() if heading != DEVELOPMENT]
    assert [each for lines in later for each in lines if "trust rotate" in each]
    for lines in later:
        for line in lines:
            if "--new targets-4.pub" in line:
                type_in("overspill trust key targets-4.key")
            type_in(line)
    result = CliRunner().invoke(app, ["trust", "status", "--json"])
    assert result.exit_code == 0, result.output
