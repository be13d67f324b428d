"""The consumer's end of the model process: start it, feed it, mend it.

The runtime is never in this process, so a crash or a hang there costs its batch a
retry and costs the consumer nothing. Batches are answered in the order in which they
were sent; when the process dies, only the oldest unanswered one is suspect.
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
from types import TracebackType
from typing import Any, Final, Self

import structlog
from typing_extensions import override

from broker.backoff import Backoff
from cloud_worker.adapters import frames
from cloud_worker.adapters.frames import ModelSource
from cloud_worker.core.batcher import Signature
from cloud_worker.core.outputs import BatchOutputs
from cloud_worker.core.spec import ModelSpec, padded_size

log = structlog.get_logger(__name__)

SOCKET_BUFFER_BYTES: Final = 4 * 1024 * 1024
OUTPUT_TAIL_BYTES: Final = 4096
SLOWER_THAN_WARM: Final = 20.0
COLD_TIMEOUT_S: Final = 60.0
EXIT_TIMEOUT_S: Final = 10.0

Read = Callable[[dict[str, Any], memoryview], Any]


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


class RunnerLost(Exception):
    """The model process died again and again without finishing anything."""


@dataclass(slots=True)
class _Pending:
    """A frame that was sent and not answered; `read` makes its answer a value."""

    reply: asyncio.Future[Any]
    timeout_s: float
    read: Read


class RunnerProcess:
    """A child process that holds the models, restarted when it dies.

    Args:
        intra_threads: threads inside one operation; 0 lets the runtime choose.
        inter_threads: operations at once; 0 lets the runtime choose.
        batch_timeout_s: the least time a batch gets; a model that is slower at
            warm-up gets twenty times its warm-up time.
        load_timeout_s: how long loading and warming up one model may take.
        max_deaths: after so many deaths in a row with no batch finished, `run` ends.
        on_ready: called when the process has come back and holds every model; may
            be set later.

    Attributes:
        restarts: how often it has come back.
    """

    def __init__(
        self,
        *,
        intra_threads: int = 0,
        inter_threads: int = 0,
        batch_timeout_s: float = 5.0,
        load_timeout_s: float = 180.0,
        max_deaths: int = 5,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self._threads = intra_threads, inter_threads
        self._batch_timeout_s = batch_timeout_s
        self._load_timeout_s = load_timeout_s
        self._max_deaths = max_deaths
        self.on_ready = on_ready
        self._backoff = Backoff(first_s=0.2, most_s=10.0)
        self._models: dict[str, tuple[ModelSource, ModelSpec]] = {}
        self._child: _Child | None = None
        self._ready = False
        self._deaths = 0
        self.restarts = 0
        self._down = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ready = False
        if self._child is not None:
            await self._child.end()

    @property
    def ready(self) -> bool:
        """Whether the process is up and holds every model that was loaded."""
        return self._ready

    @property
    def running(self) -> int:
        """How many batches were sent and not answered."""
        return len(self._child.pending) if self._child is not None else 0

    @property
    def pid(self) -> int | None:
        """The process id of the model process, if there is one."""
        return self._child.pid if self._child is not None else None

    async def load(self, source: ModelSource) -> ModelSpec:
        """Load one more model and warm it up.

        Raises:
            CannotLoad: it is unreadable, unsupported, or kills or hangs the process.
        """
        try:
            child = await self._living()
            spec = await self._ask_load(child, source)
        except BatchFailed as error:
            raise CannotLoad(str(error)) from error
        self._models[source.key] = source, spec
        self._ready = True
        return spec

    def submit(
        self, key: str, signature: Signature, requests: Sequence[Sequence[bytes]]
    ) -> asyncio.Future[BatchOutputs]:
        """Send a batch at once; the future brings its outputs.

        Args:
            key: which model, as its source says.
            signature: the names, dtypes and shapes that all the requests share.
            requests: for each request, the buffers of its inputs.

        Raises (through the future):
            BatchFailed: the model gave an error, or its process died or hung.
        """
        if self._child is None or not self._ready:
            raise RuntimeError("submit needs a runner that is ready")
        body = [
            buffers[index] for index in range(len(signature)) for buffers in requests
        ]
        header = frames.run_header(key, signature, len(requests))
        return self._child.send(
            frames.frame(header, body),
            timeout_s=self._timeout_s(key, signature, len(requests)),
            read=self._finished,
        )

    def _finished(self, header: dict[str, Any], body: memoryview) -> BatchOutputs:
        self._deaths = 0
        self._backoff.reset()
        return frames.read_outputs(header, body)

    async def run(self) -> None:
        """Bring the process back whenever it has died, for ever.

        Raises:
            RunnerLost: it dies at once, again and again.
        """
        while True:
            await self._down.wait()
            self._deaths += 1
            if self._deaths >= self._max_deaths:
                raise RunnerLost(
                    f"the model process died {self._deaths} times in a row without "
                    "finishing a batch: see the reasons above"
                )
            await asyncio.sleep(self._backoff.next_s())
            try:
                await self._living()
            except BatchFailed as error:
                log.error("model process did not come back", reason=str(error))
                if self._child is not None:
                    await self._child.end()
                self._down.set()

    async def _living(self) -> _Child:
        """The child, started and with every known model if it was not there."""
        if self._child is not None and not self._child.ended:
            return self._child
        self._down.clear()
        child = self._child = await _Child.start(self._threads, self._died)
        for source, _ in self._models.values():
            await self._ask_load(child, source)
        if self._models:
            self._ready = True
            self.restarts += 1
            log.info("model process is back", pid=child.pid)
            self.on_ready()
        return child

    async def _ask_load(self, child: _Child, source: ModelSource) -> ModelSpec:
        frame = frames.frame(frames.load_header(source))
        spec: ModelSpec = await child.send(
            frame, timeout_s=self._load_timeout_s, read=frames.read_spec
        )
        return spec

    def _timeout_s(self, key: str, signature: Signature, count: int) -> float:
        source, spec = self._models[key]
        if not spec.costs_ms:
            return max(self._batch_timeout_s, COLD_TIMEOUT_S)
        if spec.batched:
            size = padded_size(count * signature[0][2][0], source.max_batch)
            warm_ms = dict(spec.costs_ms).get(size, spec.costs_ms[-1][1])
        else:
            warm_ms = count * spec.costs_ms[0][1]
        return max(self._batch_timeout_s, SLOWER_THAN_WARM * warm_ms / 1000)

    def _died(self, child: _Child, reason: str) -> None:
        if child is not self._child:
            return
        self._ready = False
        log.error("model process died", reason=reason, output=child.last_words())
        self._down.set()


class _Child:
    """One life of the model process."""

    def __init__(self, died: Callable[[_Child, str], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._died = died
        self._timer: asyncio.TimerHandle | None = None
        self._fault: str | None = None
        self._asked_to_end = False
        self._output = bytearray()
        self._exited = asyncio.Event()
        self._socket: asyncio.Transport | None = None
        self._process: asyncio.SubprocessTransport | None = None
        self.pending: deque[_Pending] = deque()

    @classmethod
    async def start(
        cls, threads: tuple[int, int], died: Callable[[_Child, str], None]
    ) -> _Child:
        """Start the process; it answers once its imports are done."""
        self = cls(died)
        ours, theirs = socket.socketpair()
        with theirs:
            for each in (ours, theirs):
                # Room for the next batch to lie ready while one runs.
                each.setsockopt(
                    socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES
                )
            ours.setblocking(False)
            self._socket, _ = await self._loop.create_connection(
                lambda: _Frames(self._answered, self._lost), sock=ours
            )
            spawning = self._loop.create_task(
                self._loop.subprocess_exec(
                    lambda: _Output(self._said, self._gone),
                    sys.executable,
                    "-P",
                    "-m",
                    "cloud_worker.adapters.runner_child",
                    *("--fd", str(theirs.fileno())),
                    *("--parent", str(os.getpid())),
                    *("--intra-threads", str(threads[0])),
                    *("--inter-threads", str(threads[1])),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.STDOUT,
                    pass_fds=(theirs.fileno(),),
                    # Ctrl-C on a terminal is for the consumer, which drains.
                    start_new_session=True,
                )
            )
            try:
                self._process, _ = await asyncio.shield(spawning)
            except asyncio.CancelledError:
                # The process may be there already, and somebody has to end it.
                self._process, _ = await spawning
                await self.end()
                raise
        return self

    @property
    def pid(self) -> int | None:
        return self._process.get_pid() if self._process is not None else None

    @property
    def ended(self) -> bool:
        """Whether it has died, or is about to."""
        return self._exited.is_set() or self._fault is not None

    def send(
        self, frame: bytes, *, timeout_s: float, read: Read
    ) -> asyncio.Future[Any]:
        reply: asyncio.Future[Any] = self._loop.create_future()
        if self.ended or self._socket is None:
            failure = BatchFailed("the model process died", suspect=False, crashed=True)
            reply.set_exception(failure)
            return reply
        self.pending.append(_Pending(reply, timeout_s, read))
        if len(self.pending) == 1:
            self._time_the_oldest()
        self._socket.write(frame)
        return reply

    async def end(self) -> None:
        """Kill it and wait until it is gone."""
        self._asked_to_end = True
        if self._timer is not None:
            self._timer.cancel()
        if self._process is not None:
            self._kill()
            async with asyncio.timeout(EXIT_TIMEOUT_S):
                await self._exited.wait()
            self._process.close()
        if self._socket is not None:
            self._socket.abort()
        self._fail_pending("the worker is stopping")

    def last_words(self) -> str:
        """The end of what it wrote, for a log."""
        return self._output.decode(errors="replace").strip()

    def _answered(self, header: dict[str, Any], body: memoryview) -> None:
        pending = self.pending.popleft()
        self._time_the_oldest()
        if pending.reply.done():
            return
        if "error" in header:
            failure = BatchFailed(header["error"], suspect=True, crashed=False)
            pending.reply.set_exception(failure)
        else:
            pending.reply.set_result(pending.read(header, body))

    def _time_the_oldest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.pending:
            self._timer = self._loop.call_later(self.pending[0].timeout_s, self._hung)

    def _hung(self) -> None:
        seconds = self.pending[0].timeout_s
        self._fault = f"the model did not answer within {seconds:g} s"
        self._kill()

    def _lost(self, error: BaseException | None) -> None:
        """The socket is gone; the exit code, a moment later, says why."""
        if error is not None and not isinstance(error, ConnectionError):
            self._fault = f"the model process said what is no frame: {error}"
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
        if self._timer is not None:
            self._timer.cancel()
        if self._socket is not None:
            self._socket.abort()
        if self._asked_to_end or self._process is None:
            return
        self._process.close()
        code = self._process.get_returncode()
        self._fault = self._fault or f"the model process {_cause(code)}"
        self._fail_pending(self._fault)
        self._died(self, self._fault)

    def _fail_pending(self, reason: str) -> None:
        suspect = True
        while self.pending:
            pending = self.pending.popleft()
            if not pending.reply.done():
                failure = BatchFailed(reason, suspect=suspect, crashed=True)
                pending.reply.set_exception(failure)
            # Only the oldest was being worked on.
            suspect = False


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
        on_frame: Callable[[dict[str, Any], memoryview], None],
        on_lost: Callable[[BaseException | None], None],
    ) -> None:
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._data = bytearray()

    @override
    def data_received(self, data: bytes) -> None:
        self._data += data
        while len(self._data) >= frames.PREFIX.size:
            header_bytes, body_bytes = frames.read_prefix(self._data)
            start = frames.PREFIX.size + header_bytes
            end = start + body_bytes
            if len(self._data) < end:
                return
            whole = memoryview(bytes(self._data[:end]))
            del self._data[:end]
            header = frames.read_header(whole[frames.PREFIX.size : start])
            self._on_frame(header, whole[start:])

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
