"""Processes that may outlive us, started and ended by their own id and no other way."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

POLL_S: Final = 0.05
KILL_TIMEOUT_S: Final = 10.0


class NotStarted(Exception):
    """A program could not be run."""


def spawn(command: list[str], environment: dict[str, str], output: Path) -> int:
    """Start a process in a session of its own, so that it outlives this one.

    Args:
        command: an absolute path and its arguments.
        environment: all of the process's environment.
        output: where its output and errors are added.

    Raises:
        NotStarted: there is no such program, or it may not be run.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(output), flags, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    try:
        return os.posix_spawn(
            command[0], command, environment, file_actions=actions, setsid=True
        )
    except OSError as error:
        raise NotStarted(f"cannot start {command[0]}: {error.strerror}") from error


def alive(pid: int) -> bool:
    """Whether the process runs; reaps it when it is ours and has ended."""
    with contextlib.suppress(ChildProcessError):
        return os.waitpid(pid, os.WNOHANG) == (0, 0)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _state(pid) != "Z"


def _state(pid: int) -> str:
    return (_stat(pid) or ["?"])[0]


def birth_of(pid: int) -> str:
    """When a process began, in the kernel's ticks; empty when unknown."""
    fields = _stat(pid)
    return fields[19] if len(fields) > 19 else ""


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, which may itself hold blanks."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def is_same(pid: int, birth: str | None) -> bool:
    """Whether the process runs and began when it should have."""
    return alive(pid) and (not birth or birth_of(pid) == birth)


async def end(processes: Mapping[int, str | None], timeout_s: float) -> None:
    """Ask processes to end, insist after `timeout_s` seconds, and see them gone.

    All are told before anything is awaited, so that a caller who is cancelled has
    still told each of them. What they had started in their sessions goes with them:
    the `erl` by which a node looks for its epmd would start another one.

    Args:
        processes: ids, and when each began as `birth_of` told it; an id that was used
            again since is left alone.
        timeout_s: 0 kills at once.
    """
    ours = [pid for pid, birth in processes.items() if is_same(pid, birth)]
    if timeout_s > 0:
        _tell(ours, signal.SIGTERM)
        await _until_gone(ours, timeout_s)
    left = [pid for pid in ours if alive(pid)]
    # A leader's id is not used again while its session lives on.
    leaders = [pid for pid in processes if pid in ours or not alive(pid)]
    _tell([*left, *_in_sessions_of(leaders)], signal.SIGKILL)
    await _until_gone(left, KILL_TIMEOUT_S)
    orphans = _in_sessions_of(leaders)
    _tell(orphans, signal.SIGKILL)
    await _until_gone(orphans, KILL_TIMEOUT_S)


def _in_sessions_of(leaders: Sequence[int]) -> list[int]:
    """Processes in the sessions that `leaders` began, but for themselves."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        fields = _stat(pid)
        if len(fields) > 3 and int(fields[3]) in leaders and pid not in leaders:
            found.append(pid)
    return found


def _tell(pids: Sequence[int], what: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, what)


async def _until_gone(pids: Sequence[int], timeout_s: float) -> None:
    loop = asyncio.get_running_loop()
    give_up = loop.time() + timeout_s
    while loop.time() < give_up:
        living = [pid for pid in pids if alive(pid)]
        if not living:
            return
        # No event tells of the end of a process that is not our child.
        await asyncio.sleep(POLL_S)
