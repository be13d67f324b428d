"""One child process: started by its arguments, ended by its own id and no other way.

Each has a session of its own, so that a Ctrl-C reaches only the one who started them
and who knows in which order they end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

LOOK_EVERY_S: Final = 0.1
TAIL_LINES: Final = 12
COMMAND_TIMEOUT_S: Final = 120.0
# What our programs read; a person's own settings are not for these processes.
OUR_VARIABLES: Final = "OVERSPILL_"
_INSTALLED: Final = ("site-packages", "dist-packages")


class ProgramEnded(Exception):
    """A program ended before it was ready, or did not become ready in time."""


class CommandFailed(Exception):
    """A command that was run to its end failed."""


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of this distribution.

    `-P`: a folder that somebody happens to stand in must not stand in for a package.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def environment(**ours: str) -> dict[str, str]:
    """This process's environment without its OVERSPILL_ variables, and with `ours`."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(OUR_VARIABLES)
    }
    root = Path(__file__).resolve().parent.parent
    if root.name not in _INSTALLED:
        # A checkout that is not installed: children must find it as we did.
        inherited["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(root), inherited.get("PYTHONPATH")])
        )
    return {**inherited, **ours}


class Program:
    """One child process.

    Args:
        name: for people.
        command: an absolute path and its arguments.
        log: the file that its output is added to.
        variables: all of its environment.
        talks: keep its standard input and output as pipes; errors go to `log`.
        stop_within_s: seconds from SIGTERM until SIGKILL.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        variables: Mapping[str, str],
        talks: bool = False,
        stop_within_s: float = 10.0,
    ) -> None:
        self.name = name
        self.log = log
        self._command = tuple(command)
        self._variables = dict(variables)
        self._talks = talks
        self._stop_within_s = stop_within_s
        self._process: Process | None = None
        self._asked_to_stop = False

    @property
    def process(self) -> Process:
        """The process itself, once started."""
        if self._process is None:
            raise AssertionError(f"{self.name} was not started")
        return self._process

    @property
    def pid(self) -> int | None:
        """The id of the process; None before it was started."""
        return None if self._process is None else self._process.pid

    @property
    def died(self) -> bool:
        """Whether it ended without having been asked to."""
        ended = self._process is not None and self._process.returncode is not None
        return ended and not self._asked_to_stop

    async def start(self) -> None:
        """Start the process.

        Raises:
            ProgramEnded: there is no such program, or it may not be run.
        """
        # Buffered by nobody: a crash must not take the last lines with it.
        with self.log.open("ab", buffering=0) as log:
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *self._command,
                    stdin=PIPE if self._talks else DEVNULL,
                    stdout=PIPE if self._talks else log,
                    stderr=log if self._talks else STDOUT,
                    env=self._variables,
                    start_new_session=True,
                )
            except OSError as error:
                raise ProgramEnded(
                    f"cannot start {self.name}: {self._command[0]}: {error.strerror}"
                ) from error

    async def until(
        self, ready: Callable[[], Awaitable[bool]], *, within_s: float
    ) -> None:
        """Return once `ready` says so.

        Raises:
            ProgramEnded: the process ended first, or the time did; with its log.
        """
        try:
            async with asyncio.timeout(within_s):
                while not await ready():
                    if self.died:
                        raise ProgramEnded(self.obituary())
                    await asyncio.sleep(LOOK_EVERY_S)
        except TimeoutError:
            raise ProgramEnded(
                f"{self.name} was not ready within {within_s:g} s; the machine may be "
                f"busy, or its log says why. {self._tail()}"
            ) from None

    def obituary(self) -> str:
        """How it ended, and the end of its log."""
        code = self.process.returncode or 0
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"{self.name} ended with {how}. {self._tail()}"

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL to all of its session when that takes too long."""
        self._asked_to_stop = True
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(self._stop_within_s):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    def _tail(self) -> str:
        with contextlib.suppress(OSError):
            lines = self.log.read_text(errors="replace").splitlines()
            last = [line for line in lines if line.strip()][-TAIL_LINES:]
            if last:
                return f"Its log {self.log} ends with:\n" + "\n".join(last)
        return f"Its log {self.log} is empty."


async def run_command(
    command: Sequence[str],
    variables: Mapping[str, str],
    *,
    timeout_s: float = COMMAND_TIMEOUT_S,
) -> tuple[int, str, str]:
    """Run a command to its end; a cancelled one is killed.

    Returns:
        Its exit code, output and errors.

    Raises:
        CommandFailed: it could not be started, or took too long.
    """
    async with _running(command, variables, timeout_s) as process:
        out, err = await process.communicate()
    return (
        process.returncode or 0,
        out.decode(errors="replace"),
        err.decode(errors="replace"),
    )


async def follow_command(
    command: Sequence[str],
    variables: Mapping[str, str],
    hear: Callable[[str], None],
    *,
    timeout_s: float = COMMAND_TIMEOUT_S,
) -> tuple[int, str]:
    """As `run_command`, but hear each line of its output when it is written.

    Returns:
        Its exit code and errors.

    Raises:
        CommandFailed: it could not be started, or took too long.
    """
    async with _running(command, variables, timeout_s) as process:
        out, errors = process.stdout, process.stderr
        if out is None or errors is None:
            raise CommandFailed(f"{command[0]} was started without its output")
        async with asyncio.TaskGroup() as group:
            err = group.create_task(errors.read())
            async for line in out:
                hear(line.decode(errors="replace").rstrip())
        code = await process.wait()
    return code, err.result().decode(errors="replace")


@contextlib.asynccontextmanager
async def _running(
    command: Sequence[str], variables: Mapping[str, str], timeout_s: float
) -> AsyncIterator[Process]:
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
            env=dict(variables),
            start_new_session=True,
        )
    except OSError as error:
        raise CommandFailed(f"cannot start {command[0]}: {error.strerror}") from error
    try:
        async with asyncio.timeout(timeout_s):
            yield process
    except TimeoutError:
        raise CommandFailed(
            f"`{' '.join(command)}` took longer than {timeout_s:g} s"
        ) from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
