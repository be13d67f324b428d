"""`rollout watch` on a real terminal of 80 columns, and Ctrl-C in it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from broker.messages import Report, SlotReport
from fleet.__main__ import app
from fleet.adapters.state.database import FleetDatabase
from fleet.core.devices import observe
from lifecycle.clock import SystemClock

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

COLUMNS, ROWS = 80, 24
COLOURS = re.compile(rb"\x1b\[[0-9;]*m")
MOVES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture
def home(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trusted_home: Callable[[Path], Path],
) -> Path:
    """A published version, thirty agents, and nobody who conducts."""
    home = trusted_home(tmp_path / "home")
    monkeypatch.setenv("OVERSPILL_FLEET_HOME", str(home))
    monkeypatch.delenv("OVERSPILL_FLEET_AMQP_URL", raising=False)
    source = tmp_path / "bundle"
    source.mkdir()
    (source / "m.tflite").write_bytes(b"weights")
    said = {"format": 1, "name": "fashion", "version": "1", "model_file": "m.tflite"}
    (source / "manifest.json").write_text(json.dumps(said))
    type_("model", "publish", str(source))
    now_ms = SystemClock().wall_ms()
    with FleetDatabase(home / "fleet.db") as database, database.writing() as ledger:
        for number in range(30):
            name = f"cam-{number:02}"
            slots = [SlotReport(model="fashion", active=None)]
            report = Report(agent=name, at_ms=1, slots=slots)
            ledger.keep_device(observe(None, name, report, now_ms))
    return home


def type_(*words: str) -> str:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return result.stdout


class Terminal:
    """A process that believes to be on a terminal, and all that it wrote there."""

    def __init__(self, *words: str) -> None:
        self._side, other = pty.openpty()
        size = struct.pack("HHHH", ROWS, COLUMNS, 0, 0)
        fcntl.ioctl(other, termios.TIOCSWINSZ, size)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fleet", *words],
            stdin=other,
            stdout=other,
            stderr=other,
            env={**os.environ, "TERM": "xterm-256color"},
            start_new_session=True,
        )
        os.close(other)
        self.written = b""

    def read_until(self, words: str, within_s: float = 30) -> None:
        until_s = time.monotonic() + within_s
        while words not in self.text:
            assert time.monotonic() < until_s, self.text
            self._read()

    def end(self) -> int:
        while self._read():
            pass
        os.close(self._side)
        return self.process.wait(60)

    def _read(self) -> bool:
        try:
            some = os.read(self._side, 65536)
        except OSError:  # Linux says so when the other side is closed.
            return False
        self.written += some
        return bool(some)

    @property
    def text(self) -> str:
        """What was written, with a new line where the cursor was moved elsewhere."""
        still = COLOURS.sub(b"", self.written)
        return MOVES.sub(b"\n", still).decode(errors="replace")


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def open_(*words: str) -> Terminal:
        opened.append(Terminal(*words))
        return opened[-1]

    yield open_
    for each in opened:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()


def test_a_watch_fits_its_terminal_and_ctrl_c_leaves_the_rollout_alone(
    home: Path, terminal: Callable[..., Terminal]
) -> None:
    type_("rollout", "start", "fashion", "1")
    watching = terminal("rollout", "watch")
    watching.read_until("surely between")
    watching.read_until("to come")
    watching.process.send_signal(signal.SIGINT)
    assert watching.end() == 130
    assert "goes on without you: overspill rollout watch 1" in " ".join(
        watching.text.split()
    )
    for line in re.split(r"[\r\n]+", watching.text.partition("rollout 1 goes on")[0]):
        assert len(line) <= COLUMNS
    (status,) = json.loads(type_("rollout", "status", "--json"))["rollouts"]
    assert status["state"] == "running"


def test_a_watch_of_what_has_ended_shows_the_whole_of_it(
    home: Path, terminal: Callable[..., Terminal]
) -> None:
    type_("rollout", "start", "fashion", "1")
    type_("rollout", "abort", "--reason", "wrong day")
    watching = terminal("rollout", "watch")
    assert watching.end() == 1
    assert "aborted: wrong day" in watching.text
    assert "stopped" in watching.text
