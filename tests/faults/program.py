"""One process of a stage: started, signalled and seen to its end by its own id."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from tests.acceptance.processes import environment, module
from tests.waiting import until

ROOT = Path(__file__).parents[2]
READY_S = 90.0
READY = '"ready"'


class Program:
    """A daemon with a log, which says when it is ready.

    Args:
        name: for its log.
        folder: where its log is.
        command: the module and its arguments.
        variables: added to this process's environment.
        ready: what its log says once it is; None when it need not say anything.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        command: Sequence[str],
        variables: dict[str, str] | None = None,
        *,
        ready: str | None = READY,
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._command = list(command)
        self._variables = environment(**(variables or {}))
        self._ready = ready
        self._process: asyncio.subprocess.Process | None = None
        self._log_size = 0

    async def start(self, *more: str, wait: bool = True) -> None:
        """Start it with `more` arguments; returns when it is ready, or has died."""
        self._log_size = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                *more,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._variables,
                cwd=ROOT,
            )
        if wait:
            await self.ready()

    async def ready(self) -> None:
        """Return once it says so, or has died."""
        if self._ready is not None:
            await until(lambda: self._says_ready() or not self.alive, READY_S)

    def _says_ready(self) -> bool:
        with self.log.open() as log:
            log.seek(self._log_size)
            return self._ready is not None and self._ready in log.read()

    @property
    def alive(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    def signal(self, number: int) -> None:
        """Send it a signal, if it is still there."""
        if self.alive:
            os.kill(self.pid, number)

    async def ended(self, within_s: float = 30.0) -> int:
        """Its exit code, once it has ended."""
        assert self._process is not None, f"{self.name} was not started"
        async with asyncio.timeout(within_s):
            return await self._process.wait()

    async def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self.signal(signal.SIGKILL)
            await self.ended()

    async def stop(self, within_s: float = 30.0) -> int:
        """Ask it to end, and see it gone."""
        self.signal(signal.SIGTERM)
        return await self.ended(within_s)

    def tail(self, lines: int = 15) -> str:
        """The end of its log, for whoever looks for a reason."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def python(name: str, *arguments: str | Path) -> list[str]:
    """The command that runs a module of this distribution."""
    return module(name, *arguments)
