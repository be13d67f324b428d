"""One life of a model's process, from its start to its end; `runners.py` begins the next.

The runtime is never in the consumer, so a crash or a hang there costs its batches a
retry and costs the consumer nothing. Only the batches that were being run when the
process died are suspect.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, Final

import structlog
from typing_extensions import override

from cloud_worker.adapters import frames
from cloud_worker.adapters.frames import FrameError, Loaded, ModelSource
from cloud_worker.adapters.runtime import Tuning
from cloud_worker.adapters.trays import Tray
from cloud_worker.core.batcher import DEPTH
from cloud_worker.core.line import Signature
from cloud_worker.core.outputs import BatchOutputs
from cloud_worker.core.spec import ModelSpec

log = structlog.get_logger(__name__)

OUTPUT_TAIL_BYTES: Final = 4096
EXIT_TIMEOUT_S: Final = 10.0
CHILD: Final = "cloud_worker.adapters.runner_start"
PAGE_BYTES: Final = os.sysconf("SC_PAGESIZE")

Buffers = Sequence[Sequence[bytes]]


class CannotLoad(Exception):
    """The model version cannot be served; the reason is for the operator."""


class BatchFailed(Exception):
    """The batch gave no outputs.

    Attributes:
        suspect: whether it may be the batch's own fault.
        crashed: whether the process died or hung, rather than give an error.
    """

    def __init__(self, reason: str, *, suspect: bool, crashed: bool) -> None:
        super().__init__(reason)
        self.suspect = suspect
        self.crashed = crashed


class ModelFailed(BatchFailed):
    """The model is given up for now: each request of the batch fails for this reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, suspect=False, crashed=False)


@dataclass(slots=True, eq=False)
class _Batch:
    """A batch that was submitted and not answered."""

    number: int
    signature: Signature
    requests: Buffers
    limit_s: float
    reply: asyncio.Future[BatchOutputs]
    tray: int | None = None
    timer: asyncio.TimerHandle | None = None


class RunnerProcess:
    """A process that holds one model.

    Made by `start`. It is of no use once `ended`.

    Args:
        on_death: called once with the reason when it dies and was not told to.
    """

    def __init__(self, on_death: Callable[[RunnerProcess, str], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_death = on_death
        self._trays: list[Tray] = []
        self._free: list[int] = []
        self._numbers = count()
        self._batches: dict[int, _Batch] = {}
        self._waiting: deque[_Batch] = deque()
        self._at_once = 1
        self._loaded: asyncio.Future[Loaded] = self._loop.create_future()
        self._fault: str | None = None
        self._cut = False
        self._asked_to_end = False
        self._output = bytearray()
        self._exited = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._socket: asyncio.Transport | None = None
        self._process: asyncio.SubprocessTransport | None = None
        self.finished = 0
        self.spec = ModelSpec((), (), batched=False)

    @classmethod
    async def start(
        cls,
        source: ModelSource,
        tuning: Tuning,
        *,
        timeout_s: float,
        gently: bool = False,
        on_death: Callable[[RunnerProcess, str], None],
    ) -> RunnerProcess:
        """Start a process, load the model and warm it up.

        Args:
            source: the model.
            tuning: how it is run.
            timeout_s: how long that may take.
            gently: whether others serve meanwhile, who should not feel it.
            on_death: see above.

        Raises:
            CannotLoad: the model is unreadable, unsupported, too slow to load, or
                kills its process.
        """
        self = cls(on_death)
        # A load that fails is told to the caller, and is no death.
        self._asked_to_end = True
        try:
            await self._spawn(max(DEPTH, tuning.at_once + 1), gently=gently)
            self._write(frames.load_header(source, tuning))
            async with asyncio.timeout(timeout_s):
                loaded = await self._loaded
        except TimeoutError:
            await self.end()
            raise CannotLoad(
                f"it did not load and warm up within {timeout_s:g} s: give it more "
                "with load_timeout_s"
            ) from None
        except OSError as error:
            await self.end()
            raise CannotLoad(f"its process cannot be started: {error}") from error
        except BaseException:
            await self.end()
            raise
        self._asked_to_end = False
        self.spec, self._at_once = loaded.spec, loaded.at_once
        return self

    @property
    def pid(self) -> int | None:
        """The id of the process, if there is one."""
        return self._process.get_pid() if self._process is not None else None

    @property
    def ended(self) -> bool:
        """Whether it has died, or is about to."""
        return self._cut or self._exited.is_set() or self._fault is not None

    @property
    def running(self) -> int:
        """How many batches were submitted and not answered."""
        return len(self._batches)

    def submit(
        self, signature: Signature, requests: Buffers, *, limit_s: float
    ) -> asyncio.Future[BatchOutputs]:
        """Run a batch; see `Runners.submit`.

        Args:
            signature: the names, dtypes and shapes that all the requests share.
            requests: for each request, the buffers of its inputs.
            limit_s: once it runs, it may take so long before the process is killed.
        """
        reply: asyncio.Future[BatchOutputs] = self._loop.create_future()
        if self.ended or self._socket is None:
            failure = BatchFailed(
                "the model's process died", suspect=False, crashed=True
            )
            reply.set_exception(failure)
            return reply
        batch = _Batch(next(self._numbers), signature, requests, limit_s, reply)
        self._batches[batch.number] = batch
        self._idle.clear()
        if self._free:
            self._send(batch)
        else:
            self._waiting.append(batch)
        return reply

    async def end_when_idle(self) -> None:
        """End once every batch that was submitted is answered."""
        await self._idle.wait()
        await self.end()

    async def end(self) -> None:
        """Kill it and wait until it is gone, or has not died for ten seconds."""
        self._asked_to_end = True
        if self._process is not None:
            self._kill()
            try:
                async with asyncio.timeout(EXIT_TIMEOUT_S):
                    await self._exited.wait()
            except TimeoutError:
                # Deep in a driver or on a dead disk; it ends when that lets it go.
                log.warning("killed process does not end", pid=self.pid)
            self._process.close()
        if self._socket is not None:
            self._socket.abort()
        self._fail_batches("the worker is stopping", suspects=())
        while self._trays:
            self._trays.pop().close()

    def kill(self, reason: str) -> None:
        """Kill it as one that went wrong; what it was running is suspect."""
        if self._fault is None:
            self._fault = reason
        self._kill()

    def last_words(self) -> str:
        """The end of what it wrote, for a log."""
        return self._output.decode(errors="replace").strip()

    def _send(self, batch: _Batch) -> None:
        tray = batch.tray = self._free.pop()
        parts = [
            buffers[index]
            for index in range(len(batch.signature))
            for buffers in batch.requests
        ]
        try:
            size = self._trays[tray].put(parts)
        except OSError as error:
            self._free.append(tray)
            self._forget(batch)
            failure = BatchFailed(
                f"no memory for its inputs: {error}", suspect=True, crashed=False
            )
            batch.reply.set_exception(failure)
            return
        count_ = len(batch.requests)
        # The tray holds them now; a long queue need not hold them twice.
        batch.requests = ((),) * count_
        self._write(
            frames.run_header(batch.number, tray, size, batch.signature, count_)
        )
        self._time_those_running()

    def _write(self, header: dict[str, Any]) -> None:
        if self._socket is not None:
            self._socket.write(frames.frame(header))

    def _answered(self, header: dict[str, Any]) -> None:
        if not self._loaded.done():
            self._take_loaded(header)
            return
        batch = self._batches.get(header.get("batch", -1))
        if batch is None or batch.tray is None:
            raise FrameError("an answer to no batch")
        tray = self._trays[batch.tray]
        outputs: BatchOutputs | BatchFailed
        if "error" in header:
            outputs = BatchFailed(str(header["error"]), suspect=True, crashed=False)
        else:
            outputs = frames.read_outputs(header, tray.take, len(batch.requests))
        self._forget(batch)
        tray.clear()
        self._free.append(batch.tray)
        if self._waiting:
            self._send(self._waiting.popleft())
        self._time_those_running()
        self.finished += 1
        if batch.reply.done():
            return
        if isinstance(outputs, BatchFailed):
            batch.reply.set_exception(outputs)
        else:
            batch.reply.set_result(outputs)

    def _take_loaded(self, header: dict[str, Any]) -> None:
        if "error" in header:
            self._loaded.set_exception(CannotLoad(str(header["error"])))
        else:
            self._loaded.set_result(frames.read_loaded(header))

    def _forget(self, batch: _Batch) -> None:
        if batch.timer is not None:
            batch.timer.cancel()
        del self._batches[batch.number]
        if not self._batches:
            self._idle.set()

    def _running_now(self) -> list[_Batch]:
        """Those that it is working on: it takes them in order."""
        return list(islice(self._batches.values(), self._at_once))

    def _time_those_running(self) -> None:
        for batch in islice(self._batches.values(), self._at_once):
            if batch.timer is None and batch.tray is not None:
                batch.timer = self._loop.call_later(batch.limit_s, self._hung, batch)

    def _hung(self, batch: _Batch) -> None:
        self._fault = f"the model did not answer within {batch.limit_s:g} s"
        # Others that run beside it have shown nothing yet.
        self._fail_batches(self._fault, suspects=(batch,))
        self._kill()

    def _lost(self, error: BaseException | None) -> None:
        """The socket is gone; the exit code, a moment later, says why."""
        # In between nothing may be written to it.
        self._cut = True
        if isinstance(error, FrameError):
            self.kill(f"the model's process said what is no frame: {error}")
        self._kill()

    def _kill(self) -> None:
        if self._process is not None and not self._exited.is_set():
            # Not `Popen.kill`, which may reap a process that has just died, so that
            # asyncio would never learn its exit code.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.get_pid(), signal.SIGKILL)

    def _said(self, data: bytes) -> None:
        self._output += data
        del self._output[:-OUTPUT_TAIL_BYTES]

    def _gone(self) -> None:
        self._exited.set()
        code = self._process.get_returncode() if self._process is not None else None
        cause = f"the model's process {_cause(code)}"
        reason = self._fault or cause
        if self._socket is not None:
            self._socket.abort()
        if not self._loaded.done():
            words = self.last_words()
            reason = f"{reason}: {words.splitlines()[-1][:300]}" if words else reason
            self._loaded.set_exception(CannotLoad(reason))
        self._fail_batches(reason, suspects=self._running_now())
        if not self._asked_to_end:
            self._on_death(self, reason)

    def _fail_batches(self, reason: str, *, suspects: Sequence[_Batch]) -> None:
        self._waiting.clear()
        for batch in list(self._batches.values()):
            self._forget(batch)
            if not batch.reply.done():
                failure = BatchFailed(reason, suspect=batch in suspects, crashed=True)
                batch.reply.set_exception(failure)

    async def _spawn(self, trays: int, *, gently: bool) -> None:
        self._trays = [Tray() for _ in range(trays)]
        self._free = list(range(trays))
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setblocking(False)
            self._socket, _ = await self._loop.create_connection(
                lambda: _Frames(self._answered, self._lost), sock=ours
            )
            inherited = [tray.fd for tray in self._trays]
            spawning = self._loop.create_task(
                self._loop.subprocess_exec(
                    lambda: _Output(self._said, self._gone),
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
