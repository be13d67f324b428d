"""Real processes of ours, started as a person starts them and ended by their own ids."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from edge_agent.adapters.control import ask
from tests.waiting import until

READY_S = 60.0


def environment(**ours: str) -> dict[str, str]:
    """This process's environment without its OVERSPILL_ variables, and with `ours`."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("OVERSPILL_")
    }
    return {**inherited, **ours}


def module(name: str, *arguments: str | Path) -> list[str]:
    """The command that runs a program of this distribution."""
    return [sys.executable, "-m", name, *map(str, arguments)]


def said(
    *words: str | Path, within_s: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """Run `overspill-agent WORDS` to its end."""
    return subprocess.run(
        module("edge_agent", *words),
        capture_output=True,
        text=True,
        timeout=within_s,
        env=environment(),
        check=False,
    )


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The one line with which a command failed, without its name."""
    assert done.returncode == 1, done
    *logs, line = done.stderr.splitlines()
    assert all(each.startswith("{") for each in logs), done.stderr
    assert line.startswith("overspill-agent: "), done.stderr
    assert "Traceback" not in done.stderr
    return line.removeprefix("overspill-agent: ")


class AgentProcess:
    """`overspill-agent run` in a folder of its own.

    Args:
        folder: for its state and its log.
        command: what to run, where it is not this environment's own module.
        settings: by their names, as OVERSPILL_AGENT_ variables.
    """

    def __init__(
        self, folder: Path, *, command: list[str] | None = None, **settings: object
    ) -> None:
        self.state_dir = folder / "agent"
        self.log = folder / "agent.log"
        self._command = command or module("edge_agent", "run")
        self._variables = environment(
            OVERSPILL_AGENT_STATE_DIR=str(self.state_dir),
            **{
                f"OVERSPILL_AGENT_{name.upper()}": str(value)
                for name, value in settings.items()
            },
        )
        self._process: asyncio.subprocess.Process | None = None

    @property
    def process(self) -> asyncio.subprocess.Process:
        """The process; there is one once it was started."""
        assert self._process is not None
        return self._process

    async def start(self) -> None:
        """Start it and return when it is ready."""
        before = self._ready_count()
        await self.spawn()
        await until(lambda: self._ready_count() > before or self._ended(), READY_S)
        assert not self._ended(), self.log.read_text()

    async def spawn(self) -> None:
        """Start it and wait for nothing."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdout=log, stderr=log, env=self._variables
            )

    def _ready_count(self) -> int:
        return self.log.read_text().count('"ready"') if self.log.exists() else 0

    def _ended(self) -> bool:
        return self.process.returncode is not None

    async def end(self, number: int = signal.SIGTERM, within_s: float = 30.0) -> int:
        """Signal it and see it gone; gives its exit code."""
        if not self._ended():
            self.process.send_signal(number)
        async with asyncio.timeout(within_s):
            return await self.process.wait()

    async def status(self) -> dict[str, Any]:
        """What it says of itself, as `overspill-agent status --json` shows it."""
        path = self.state_dir / "control.sock"
        return await ask(path, {"do": "status"}, timeout_s=10.0)

    async def until_status(
        self, holds: Callable[[dict[str, Any]], object], within_s: float = 60.0
    ) -> dict[str, Any]:
        """The status, once it is as wanted."""
        async with asyncio.timeout(within_s):
            while not holds(status := await self.status()):  # noqa: ASYNC110 - no event
                await asyncio.sleep(0.05)
        return status


@asynccontextmanager
async def agent(folder: Path, **settings: Any) -> AsyncIterator[AgentProcess]:
    """A ready daemon; killed at the end if it still runs."""
    made = AgentProcess(folder, **settings)
    await made.start()
    try:
        yield made
    finally:
        await made.end(signal.SIGKILL)
