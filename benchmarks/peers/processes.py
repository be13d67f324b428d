"""Process trees: started in a group of their own, stopped, weighed and ended by id."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
PROC: Final = Path("/proc")
END_S: Final = 8.0
LOOK_EVERY_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Member:
    """A process that cannot be mistaken for a later one with its id."""

    pid: int
    started_ticks: int


def _fields(pid: int) -> list[str]:
    return (PROC / f"{pid}/stat").read_text().rsplit(")", 1)[1].split()


def tree(pid: int) -> list[Member]:
    """A process and all below it, parents first."""
    found: list[Member] = []
    waiting = [pid]
    while waiting:
        each = waiting.pop()
        with contextlib.suppress(OSError, IndexError):
            found.append(Member(each, int(_fields(each)[19])))
            for task in (PROC / f"{each}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
    return found


def alive(member: Member) -> bool:
    """Whether it still runs; a zombie does not."""
    try:
        fields = _fields(member.pid)
    except OSError:
        return False
    return int(fields[19]) == member.started_ticks and fields[0] != "Z"


def cpu_s(pid: int) -> float:
    """Processor seconds of a tree, of children that it has buried as well."""
    ticks = 0
    for each in tree(pid):
        with contextlib.suppress(OSError):
            ticks += sum(map(int, _fields(each.pid)[11:15]))
    return ticks / TICKS_PER_S


def memory_mb(pid: int) -> float:
    """Memory of a tree, each shared page counted once (proportional set size)."""
    total_kb = 0
    for each in tree(pid):
        with contextlib.suppress(OSError, IndexError):
            rollup = (PROC / f"{each.pid}/smaps_rollup").read_text()
            total_kb += int(rollup.split("\nPss:")[1].split()[0])
    return total_kb / 1024


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A tree stands still, so that its queue can be filled or others measured."""
    members = tree(pid)
    for each in members:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for each in reversed(members):
            with contextlib.suppress(ProcessLookupError):
                os.kill(each.pid, signal.SIGCONT)


async def start(
    command: Sequence[str], variables: Mapping[str, str], *, folder: Path, log: Path
) -> asyncio.subprocess.Process:
    """Start a program in `folder` as the leader of a session; it writes to `log`."""
    with log.open("ab") as output:
        return await asyncio.create_subprocess_exec(
            *command,
            env={**os.environ, **variables},
            cwd=folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def kill(members: Sequence[Member]) -> None:
    """End them at once, as an out-of-memory killer would."""
    for each in members:
        if alive(each):
            with contextlib.suppress(ProcessLookupError):
                os.kill(each.pid, signal.SIGKILL)


async def end(process: asyncio.subprocess.Process, within_s: float = END_S) -> None:
    """Ask a tree to end; what has not ended by then is killed."""
    members = tree(process.pid)
    if process.returncode is None:
        process.terminate()
    until = time.monotonic() + within_s
    while any(map(alive, members)) and time.monotonic() < until:  # noqa: ASYNC110 - a tree has no event
        await asyncio.sleep(LOOK_EVERY_S)
    kill(members)
    await process.wait()
