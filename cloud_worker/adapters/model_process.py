"""A model's process as its parent sees it: frames over a socket, its words, its end.

What the frames mean is `runner.py`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import structlog
from typing_extensions import override

from cloud_worker.adapters import frames
from cloud_worker.adapters.frames import FrameError
from cloud_worker.adapters.trays import Tray

log = structlog.get_logger(__name__)

OUTPUT_TAIL_BYTES: Final = 4096
EXIT_TIMEOUT_S: Final = 10.0
CHILD: Final = "cloud_worker.adapters.runner_start"
PAGE_BYTES: Final = os.sysconf("SC_PAGESIZE")


class ModelProcess:
    """A child process; of no use once it is `gone`.

    Args:
        on_frame: called with the header of each frame. A FrameError that it raises
            loses the socket.
        on_lost: called when the socket is gone, with the reason if there is one; the
            exit code comes a moment later.
        on_exit: called once it has ended, when nothing more is read of it.
    """

    def __init__(
        self,
        *,
        on_frame: Callable[[dict[str, Any]], None],
        on_lost: Callable[[BaseException | None], None],
        on_exit: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._on_exit = on_exit
        self._output = bytearray()
        self._exited = asyncio.Event()
        self._socket: asyncio.Transport | None = None
        self._process: asyncio.SubprocessTransport | None = None

    @property
    def pid(self) -> int | None:
        """The id of the process, if there is one."""
        return self._process.get_pid() if self._process is not None else None

    @property
    def gone(self) -> bool:
        """Whether it has ended."""
        return self._exited.is_set()

    @property
    def cause(self) -> str:
        """How it ended, for people."""
        code = self._process.get_returncode() if self._process is not None else None
        return f"the model's process {_cause(code)}"

    @property
    def last_words(self) -> str:
        """The end of what it wrote, for a log."""
        return self._output.decode(errors="replace").strip()

    async def start(self, trays: Sequence[Tray], *, gently: bool) -> None:
        """Start it.

        Args:
            trays: the memory that both sides have open.
            gently: whether others should not feel it.

        Raises:
            OSError: it cannot be started.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setblocking(False)
            self._socket, _ = await self._loop.create_connection(
                lambda: _Frames(self._on_frame, self._on_lost), sock=ours
            )
            inherited = [tray.fd for tray in trays]
            spawning = self._loop.create_task(
                self._loop.subprocess_exec(
                    lambda: _Output(self._said, self._ended),
                    *(sys.executable, "-P", "-m", CHILD),
                    *("--fd", str(theirs.fileno())),
                    *(f"--tray={fd}" for fd in inherited),
                    *("--parent", str(os.getpid())),
                    *(("--gently",) if gently else ()),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.STDOUT,
                    pass_fds=(theirs.fileno(), *inherited),
                    # Ctrl-C on a terminal is for the consumer, which drains.
                    start_new_session=True,
                )
            )
            try:
                self._process, _ = await asyncio.shield(spawning)
            except asyncio.CancelledError:
                # The process may be there already, and somebody has to end it.
                self._process, _ = await spawning
                raise

    def write(self, header: dict[str, Any]) -> None:
        """Send it a frame, which nobody reads if it has died."""
        # Its death is told in time; uvloop raises where asyncio would only warn.
        if self._socket is not None and not self._socket.is_closing():
            self._socket.write(frames.frame(header))

    def kill(self) -> None:
        """Kill it, unless it has ended."""
        if self._process is not None and not self._exited.is_set():
            # Not `Popen.kill`, which may reap a process that has just died, so that
            # asyncio would never learn its exit code.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.get_pid(), signal.SIGKILL)

    async def end(self) -> None:
        """Kill it and wait until it is gone, or has not died for ten seconds."""
        if self._process is not None:
            self.kill()
            try:
                async with asyncio.timeout(EXIT_TIMEOUT_S):
                    await self._exited.wait()
            except TimeoutError:
                # Deep in a driver or on a dead disk; it ends when that lets it go.
                log.warning("killed process does not end", pid=self.pid)
            self._process.close()
        if self._socket is not None:
            self._socket.abort()

    def _said(self, data: bytes) -> None:
        self._output += data
        del self._output[:-OUTPUT_TAIL_BYTES]

    def _ended(self) -> None:
        self._exited.set()
        if self._socket is not None:
            self._socket.abort()
        self._on_exit()


def resident_bytes(pid: int) -> int:
    """The memory of a process that is in RAM now; 0 when there is no telling."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * PAGE_BYTES
    except (OSError, IndexError):
        return 0


def _cause(code: int | None) -> str:
    if code is None:
        return "went away"
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


class _Frames(asyncio.Protocol):
    """Cut what comes over the socket into frames."""

    def __init__(
        self,
        on_frame: Callable[[dict[str, Any]], None],
        on_lost: Callable[[BaseException | None], None],
    ) -> None:
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._data = bytearray()
        self._lost = False

    @override
    def data_received(self, data: bytes) -> None:
        if self._lost:
            return
        self._data += data
        try:
            self._take_frames()
        except FrameError as error:
            self._lost = True
            self._on_lost(error)

    def _take_frames(self) -> None:
        while len(self._data) >= frames.PREFIX.size:
            end = frames.PREFIX.size + frames.read_prefix(self._data)
            if len(self._data) < end:
                return
            packed = bytes(self._data[frames.PREFIX.size : end])
            del self._data[:end]
            self._on_frame(frames.read_header(packed))

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._on_lost(exc)


class _Output(asyncio.SubprocessProtocol):
    """What the process writes, and its end."""

    def __init__(
        self, on_output: Callable[[bytes], None], on_exit: Callable[[], None]
    ) -> None:
        self._on_output = on_output
        self._on_exit = on_exit

    @override
    def pipe_data_received(self, fd: int, data: bytes) -> None:
        del fd
        self._on_output(data)

    @override
    def process_exited(self) -> None:
        self._on_exit()
