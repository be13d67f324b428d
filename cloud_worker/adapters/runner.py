"""One life of a model's process, from its start to its end; `runners.py` begins the next.

The runtime is never in the consumer, so a crash or a hang there costs its batches a
retry and costs the consumer nothing. Only the batches that were being run when the
process died are suspect.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

from cloud_worker.adapters import frames
from cloud_worker.adapters.failures import BatchFailed, CannotLoad
from cloud_worker.adapters.frames import FrameError, Loaded, ModelSource
from cloud_worker.adapters.model_process import ModelProcess
from cloud_worker.adapters.runtime import Tuning
from cloud_worker.adapters.trays import Tray
from cloud_worker.core.batcher import DEPTH
from cloud_worker.core.line import Signature
from cloud_worker.core.outputs import BatchOutputs
from cloud_worker.core.spec import ModelSpec

Buffers = Sequence[Sequence[bytes]]


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
        self._idle = asyncio.Event()
        self._idle.set()
        self._process = ModelProcess(
            on_frame=self._answered, on_lost=self._lost, on_exit=self._gone
        )
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
            trays = max(DEPTH, tuning.at_once + 1)
            self._trays = [Tray() for _ in range(trays)]
            self._free = list(range(trays))
            await self._process.start(self._trays, gently=gently)
            self._process.write(frames.load_header(source, tuning))
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
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it has died, or is about to."""
        return self._cut or self._process.gone or self._fault is not None

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
        if self.ended:
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
        await self._process.end()
        self._fail_batches("the worker is stopping", suspects=())
        while self._trays:
            self._trays.pop().close()

    def kill(self, reason: str) -> None:
        """Kill it as one that went wrong; what it was running is suspect."""
        if self._fault is None:
            self._fault = reason
        self._process.kill()

    def last_words(self) -> str:
        """The end of what it wrote, for a log."""
        return self._process.last_words

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
        self._process.write(
            frames.run_header(batch.number, tray, size, batch.signature, count_)
        )
        self._time_those_running()

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
        self._process.kill()

    def _lost(self, error: BaseException | None) -> None:
        """The socket is gone; the exit code, a moment later, says why."""
        # In between nothing may be written to it.
        self._cut = True
        if isinstance(error, FrameError):
            self.kill(f"the model's process said what is no frame: {error}")
        self._process.kill()

    def _gone(self) -> None:
        reason = self._fault or self._process.cause
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
