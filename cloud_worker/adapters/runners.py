"""The processes that hold the models: one a model version, each mended by itself.

A segfault, a hang or memory eaten up ends one of them and no other. It comes back
after a pause that grows; a model whose process only ever dies is given up, told so to
each of its requests, and tried again now and then.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

import structlog

from broker.backoff import Backoff
from cloud_worker.adapters.failures import CannotLoad, ModelFailed
from cloud_worker.adapters.frames import ModelSource
from cloud_worker.adapters.model_process import resident_bytes
from cloud_worker.adapters.runner import RunnerProcess
from cloud_worker.adapters.runtime import Tuning
from cloud_worker.core.line import Signature
from cloud_worker.core.outputs import BatchOutputs
from cloud_worker.core.spec import ModelSpec, padded_size

log = structlog.get_logger(__name__)

SLOWER_THAN_WARM: Final = 20.0
COLD_TIMEOUT_S: Final = 60.0
FIRST_PAUSE_S: Final = 0.2
MOST_PAUSE_S: Final = 10.0
LOOK_S: Final = 1.0
KILLED_ABOVE: Final = 1.5
# Who leaves the processor to others takes longer where there is none left.
GENTLE_TIMES: Final = 3
RENEWED_EVERY_S: Final = 10.0
MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """What a model's process may take before it counts as broken.

    Attributes:
        batch_s: the least time a batch gets; a model that is slower at warm-up gets
            twenty times its warm-up time.
        load_s: how long starting, loading and warming up may take.
        deaths: after so many in a row with no batch finished, the model is given up.
        retry_failed_s: so often is a model that was given up tried again.
        memory_mb: resident MiB above which a process is renewed; None: no limit.
        look_s: how often memory is looked at.
    """

    batch_s: float = 5.0
    load_s: float = 180.0
    deaths: int = 5
    retry_failed_s: float = 60.0
    memory_mb: int | None = None
    look_s: float = LOOK_S


@dataclass(slots=True, eq=False)
class _Kept:
    """One model version, and the process that holds it now, if any."""

    source: ModelSource
    process: RunnerProcess
    spec: ModelSpec
    backoff: Backoff = field(
        default_factory=lambda: Backoff(first_s=FIRST_PAUSE_S, most_s=MOST_PAUSE_S)
    )
    deaths: int = 0
    failed: str | None = None
    why_down: str = ""
    renewed_at_s: float | None = None
    mending: bool = False
    renewing: bool = False

    @property
    def up(self) -> bool:
        return not self.process.ended


class Runners:
    """One process for each model version that is loaded.

    Attributes:
        restarts: how often each has come back after it had died.
        renewals: how often each was replaced for the memory it had taken.
        on_change: called when a model has become ready, or was given up; may be set
            later.

    Args:
        tuning: how the runtimes use the machine.
        limits: what counts as broken.
    """

    def __init__(
        self, *, tuning: Tuning | None = None, limits: Limits | None = None
    ) -> None:
        self._tuning = tuning or Tuning()
        self._limits = limits or Limits()
        self._kept: dict[str, _Kept] = {}
        self._leaving: set[RunnerProcess] = set()
        self._changed = asyncio.Event()
        self.restarts: Counter[str] = Counter()
        self.renewals: Counter[str] = Counter()
        self.on_change: Callable[[], None] = lambda: None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        ending = [*self._leaving, *(kept.process for kept in self._kept.values())]
        self._kept.clear()
        for process in ending:
            await process.end()

    @property
    def running(self) -> int:
        """How many batches were submitted and not answered."""
        return sum(kept.process.running for kept in self._kept.values()) + sum(
            process.running for process in self._leaving
        )

    def ready(self, key: str) -> bool:
        """Whether a batch may be submitted now.

        So it is, too, once the model is given up: the batch then fails at once.
        """
        kept = self._kept.get(key)
        return kept is not None and (kept.up or kept.failed is not None)

    def why_not_ready(self, key: str) -> str | None:
        """Why no batch can run now; None when one can."""
        kept = self._kept.get(key)
        if kept is None:
            return "it is not loaded"
        if kept.failed is not None:
            return kept.failed
        return None if kept.up else f"its process comes back: {kept.why_down}"

    def given_up(self) -> dict[str, str]:
        """The models whose processes only die, and why."""
        return {
            key: kept.failed
            for key, kept in self._kept.items()
            if kept.failed is not None
        }

    def pid(self, key: str) -> int | None:
        """The process that holds a model now."""
        kept = self._kept.get(key)
        return kept.process.pid if kept is not None and kept.up else None

    def memory_bytes(self) -> dict[str, int]:
        """Resident memory of the process of each model; Linux only, else empty."""
        pids = {key: self.pid(key) for key in self._kept}
        sizes = {key: resident_bytes(pid) for key, pid in pids.items() if pid}
        return {key: size for key, size in sizes.items() if size}

    async def load(self, source: ModelSource, *, gently: bool = False) -> ModelSpec:
        """Load a model version into a process of its own and warm it up.

        A version of the same key that is served already goes on until this one is
        ready, and ends when its batches are answered.

        Args:
            source: where it lies.
            gently: whether others serve meanwhile, who should not feel it.

        Raises:
            CannotLoad: it is unreadable, unsupported, too large, or kills or hangs
                its process.
        """
        process = await self._start(source, gently=gently)
        before = self._kept.get(source.key)
        self._kept[source.key] = _Kept(source, process, process.spec)
        self._look_again()
        if before is not None:
            await self._see_off(before.process)
        return process.spec

    async def unload(self, key: str) -> None:
        """Take no more batches for a model; end its process when it has answered all."""
        kept = self._kept.pop(key, None)
        if kept is not None:
            await self._see_off(kept.process)

    def submit(
        self,
        key: str,
        signature: Signature,
        requests: Sequence[Sequence[bytes]],
        *,
        limit_s: float | None = None,
    ) -> asyncio.Future[BatchOutputs]:
        """Send a batch at once; the future brings its outputs.

        Args:
            key: which model, as its source says; it must be `ready`.
            signature: the names, dtypes and shapes that all the requests share.
            requests: for each request, the buffers of its inputs.
            limit_s: once it runs, it may take so long before the process is killed;
                None: as long as its warm-up makes likely, many times over.

        Raises (through the future):
            ModelFailed: the model is given up for now.
            BatchFailed: the model gave an error, or its process died or hung.
        """
        kept = self._kept.get(key)
        if kept is None:
            raise RuntimeError(f"{key} is not loaded")
        if not kept.up and kept.failed is not None:
            reply: asyncio.Future[BatchOutputs] = (
                asyncio.get_running_loop().create_future()
            )
            reply.set_exception(ModelFailed(kept.failed))
            return reply
        if limit_s is None:
            limit_s = self._limit_s(kept, signature, len(requests))
        return kept.process.submit(signature, requests, limit_s=limit_s)

    async def run(self) -> None:
        """Bring back what has died and renew what has grown, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_memory(group))
            while True:
                for kept in self._kept.values():
                    if not kept.up and not kept.mending:
                        kept.mending = True
                        group.create_task(self._mend(kept))
                await self._changed.wait()
                self._changed.clear()

    async def _mend(self, kept: _Kept) -> None:
        try:
            await self._bring_back(kept)
        finally:
            kept.mending = False
            # It may have died again already.
            self._changed.set()

    async def _bring_back(self, kept: _Kept) -> None:
        """Begin the next life of a model's process, however many tries it takes."""
        while self._is_kept(kept):
            if kept.failed is None and kept.deaths >= self._limits.deaths:
                kept.failed = (
                    f"its process died {kept.deaths} times in a row without finishing "
                    f"a batch, the last time so: {kept.why_down}"
                )
                log.error("model given up", model=kept.source.key, why=kept.failed)
                self.on_change()
            pause_s = kept.backoff.next_s()
            await asyncio.sleep(
                pause_s if kept.failed is None else self._limits.retry_failed_s
            )
            try:
                process = await self._start(kept.source)
            except CannotLoad as error:
                kept.deaths += 1
                kept.why_down = str(error)
                log.error(
                    "model did not come back", model=kept.source.key, why=str(error)
                )
                continue
            if await self._take_over(kept, process):
                self.restarts[kept.source.key] += 1
                log.info("model is back", model=kept.source.key, pid=process.pid)
            return

    async def _take_over(self, kept: _Kept, process: RunnerProcess) -> bool:
        """Let a new process serve; False if its model was unloaded meanwhile."""
        if not self._is_kept(kept):
            await process.end()
            return False
        before, kept.process, kept.failed = kept.process, process, None
        self._look_again()
        await self._see_off(before)
        return True

    async def _see_off(self, process: RunnerProcess) -> None:
        # When this is cancelled it stays among those that `__aexit__` ends.
        self._leaving.add(process)
        await process.end_when_idle()
        self._leaving.discard(process)

    async def _start(
        self, source: ModelSource, *, gently: bool = False
    ) -> RunnerProcess:
        process = await RunnerProcess.start(
            source,
            self._tuning,
            timeout_s=self._limits.load_s * (GENTLE_TIMES if gently else 1),
            gently=gently,
            on_death=self._died,
        )
        limit_mb, size = self._limits.memory_mb, resident_bytes(process.pid or 0)
        if limit_mb is not None and size > limit_mb * MIB:
            await process.end()
            raise CannotLoad(
                f"it takes {size // MIB} MiB when it has just been warmed up, over "
                f"runner_memory_mb={limit_mb}: raise that, or serve it elsewhere"
            )
        return process

    def _died(self, process: RunnerProcess, reason: str) -> None:
        for kept in self._kept.values():
            if kept.process is process:
                if process.finished:
                    kept.deaths = 0
                    kept.backoff.reset()
                kept.deaths += 1
                kept.why_down = reason
                log.error(
                    "model's process died",
                    model=kept.source.key,
                    reason=reason,
                    output=process.last_words(),
                )
                self._changed.set()

    def _look_again(self) -> None:
        """A process serves from now on; it may have died before anybody knew it."""
        self._changed.set()
        self.on_change()

    def _is_kept(self, kept: _Kept) -> bool:
        return self._kept.get(kept.source.key) is kept

    def _limit_s(self, kept: _Kept, signature: Signature, count: int) -> float:
        source, spec = kept.source, kept.spec
        if not spec.costs_ms:
            return max(self._limits.batch_s, COLD_TIMEOUT_S)
        if spec.batched:
            size = padded_size(count * signature[0][2][0], source.max_batch)
            warm_ms = dict(spec.costs_ms).get(size, spec.costs_ms[-1][1])
        else:
            warm_ms = count * spec.costs_ms[0][1]
        return max(self._limits.batch_s, SLOWER_THAN_WARM * warm_ms / 1000)

    async def _watch_memory(self, group: asyncio.TaskGroup) -> None:
        limit_mb = self._limits.memory_mb
        if limit_mb is None:
            return
        while True:
            await asyncio.sleep(self._limits.look_s)
            for key, size in self.memory_bytes().items():
                self._judge_memory(group, self._kept[key], size / MIB, limit_mb)

    def _judge_memory(
        self, group: asyncio.TaskGroup, kept: _Kept, size_mb: float, limit_mb: int
    ) -> None:
        if size_mb > KILLED_ABOVE * limit_mb:
            kept.process.kill(
                f"it took {size_mb:.0f} MiB, more than {KILLED_ABOVE:g} times "
                f"runner_memory_mb={limit_mb}"
            )
            return
        now_s = asyncio.get_running_loop().time()
        early = (
            kept.renewed_at_s is not None
            and now_s < kept.renewed_at_s + RENEWED_EVERY_S
        )
        if size_mb > limit_mb and not kept.renewing and not early:
            kept.renewing, kept.renewed_at_s = True, now_s
            group.create_task(self._renew(kept, size_mb))

    async def _renew(self, kept: _Kept, size_mb: float) -> None:
        """Replace a process that has grown, while it goes on serving."""
        key = kept.source.key
        log.warning(
            "model's process is renewed for its memory",
            model=key,
            took_mb=round(size_mb),
            limit_mb=self._limits.memory_mb,
        )
        grown = kept.process
        try:
            process = await self._start(kept.source, gently=True)
        except CannotLoad as error:
            log.error("model's process not renewed", model=key, why=str(error))
        else:
            if kept.process is not grown:
                # It died meanwhile and was mended.
                await process.end()
            elif await self._take_over(kept, process):
                self.renewals[key] += 1
        finally:
            kept.renewing = False
