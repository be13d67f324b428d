"""Run what waits: batches to the runner, outputs to the replies, failures apart."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Protocol

import structlog

from broker.messages import Result, Timings
from cloud_worker.adapters.runner import BatchFailed
from cloud_worker.core.batcher import (
    DEPTH,
    Batcher,
    Expire,
    Flush,
    Idle,
    Item,
    Signature,
    WaitUntil,
)
from cloud_worker.core.culprits import Culprit, Culprits
from cloud_worker.core.ledger import Cause
from cloud_worker.core.outputs import BatchOutputs
from cloud_worker.core.reading import Unreadable, read
from cloud_worker.core.replies import Finished
from cloud_worker.core.results import Served, Stamp, answered, expired, failed
from cloud_worker.core.retry import Verdict, verdict
from cloud_worker.loops.parcels import Held, Parcel
from cloud_worker.loops.replies import Replies
from lifecycle.clock import Clock

log = structlog.get_logger(__name__)

Batch = tuple[Item[Held], ...]


class BatchRunner(Protocol):
    """What runs batches, as `adapters.runner.RunnerProcess` does."""

    @property
    def ready(self) -> bool:
        """Whether batches may be submitted."""
        ...

    @property
    def running(self) -> int:
        """Batches submitted and not finished."""
        ...

    def submit(
        self, key: str, signature: Signature, requests: list[tuple[bytes, ...]]
    ) -> asyncio.Future[BatchOutputs]:
        """Start a batch; the future raises BatchFailed."""
        ...


class Infer:
    """The loop between what waits and what is answered."""

    def __init__(
        self,
        runner: BatchRunner,
        batcher: Batcher[Held],
        *,
        replies: Replies,
        clock: Clock,
    ) -> None:
        self._runner = runner
        self._batcher = batcher
        self._replies = replies
        self._clock = clock
        self._culprits = Culprits()
        self._changed = asyncio.Event()
        self._batches: asyncio.TaskGroup | None = None

    def offer(self, items: Iterable[Item[Held]]) -> None:
        """Let requests wait for their batch, which may start before this returns."""
        for item in items:
            self._batcher.add(item)
        if self._batches is None or self._start_batches(self._batches) is not None:
            self._changed.set()

    def wake(self) -> None:
        """Look again: the runner has come back."""
        self._changed.set()

    async def run(self) -> None:
        """Run batches, for ever."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as batches:
            self._batches = batches
            while True:
                wait_s = self._start_batches(batches)
                alarm = None
                if wait_s is not None:
                    alarm = loop.call_later(wait_s, self._changed.set)
                await self._changed.wait()
                self._changed.clear()
                if alarm is not None:
                    alarm.cancel()

    def _start_batches(self, batches: asyncio.TaskGroup) -> float | None:
        """Do all that is due; say in how many seconds there is more."""
        while True:
            now = self._clock.monotonic()
            running = self._runner.running if self._runner.ready else DEPTH
            match self._batcher.next_step(now, running=running):
                case Flush(items):
                    self._start(batches, items, now)
                case Expire(items):
                    self._say_expired(items)
                case WaitUntil(at_s):
                    return max(at_s - now, 0.0)
                case Idle():
                    return None

    def _start(self, batches: asyncio.TaskGroup, items: Batch, now: float) -> None:
        batch = tuple(item for item in items if self._may_run(item))
        if not batch:
            return
        self._replies.observer.batch_started(batch, len(self._batcher))
        first = batch[0].work
        outputs = self._runner.submit(
            f"{first.model.name}/{first.model.version}",
            first.inputs.signature,
            [item.work.inputs.buffers for item in batch],
        )
        if outputs.done():
            # It ran inline, where nothing idles while its results are written up.
            self._take(batch, outputs, now, self._clock.monotonic())
            # After the runner's own callback, which counts it as ended.
            outputs.add_done_callback(lambda _: self._changed.set())
        else:
            batches.create_task(self._collect(batches, batch, outputs, now))

    def _may_run(self, item: Item[Held]) -> bool:
        """Whether a request should run; one that should not is dealt with here."""
        if not item.work.parcel.live:
            item.work.parcel.drop()
            return False
        if not self._culprits:
            return True
        who = _culprit(item)
        if (reason := self._culprits.reason(who)) is not None:
            self._replies.finish((self._failed(item, reason),))
            return False
        if item.group.alone == 0 and self._culprits.is_suspect(who):
            # A copy of one that is to run by itself must not take others with it.
            self._batcher.add_alone(item)
            return False
        return True

    async def _collect(
        self,
        batches: asyncio.TaskGroup,
        batch: Batch,
        running: asyncio.Future[BatchOutputs],
        started_s: float,
    ) -> None:
        # The runner itself bounds the time.
        await asyncio.wait((running,))
        done_s = self._clock.monotonic()
        # The runner first: it should not idle while results are written up.
        if running.exception() is None and self._start_batches(batches) is not None:
            self._changed.set()
        self._take(batch, running, started_s, done_s)

    def _take(
        self,
        batch: Batch,
        done: asyncio.Future[BatchOutputs],
        started_s: float,
        done_s: float,
    ) -> None:
        """Write up what the runner made of a batch."""
        try:
            outputs = done.result()
        except BatchFailed as error:
            self._replies.observer.batch_failed(batch)
            self._retry_or_fail(batch, error)
            self._changed.set()
            return
        if self._culprits:
            for item in batch:
                self._culprits.acquit(_culprit(item))
        self._replies.observer.batch_ended(batch, started_s, done_s, outputs.infer_ms)
        stamp = self._replies.stamps.now(batch[0].work.model.name)
        self._replies.finish(_results(batch, outputs, started_s, done_s, stamp))

    def _say_expired(self, items: Batch) -> None:
        stamp = self._replies.stamps.now()
        reason = "its time was over before a batch had room for it"
        self._replies.finish(
            _finished(item, expired(item.work.subject, reason, stamp), Cause.WAITED)
            for item in items
        )

    def _retry_or_fail(self, batch: Batch, error: BatchFailed) -> None:
        judged = verdict(
            suspect=error.suspect,
            crashed=error.crashed,
            apart=batch[0].group.alone > 0,
            requests=len(batch),
        )
        report = log.debug if judged is Verdict.AGAIN else log.warning
        report(
            "batch failed",
            model=batch[0].group.model,
            requests=len(batch),
            verdict=judged.name.lower(),
            reason=str(error),
        )
        if error.crashed:
            self._blame(batch, judged, str(error))
        match judged:
            case Verdict.AGAIN:
                for item in batch:
                    self._batcher.add(item)
            case Verdict.APART:
                for item in batch:
                    self._batcher.add_alone(item)
            case Verdict.FAILED:
                self._replies.finish(self._failed(item, str(error)) for item in batch)

    def _blame(self, batch: Batch, judged: Verdict, reason: str) -> None:
        """Remember who may have killed the model process, or has."""
        if judged is Verdict.APART:
            self._culprits.suspect(map(_culprit, batch))
        elif judged is Verdict.FAILED:
            for item in batch:
                self._culprits.convict(_culprit(item), reason)

    def _failed(self, item: Item[Held], reason: str) -> Finished[Parcel]:
        model = item.work.model
        result = failed(
            item.work.subject,
            f"model {model.name!r} version {model.version}: {reason}",
            self._replies.stamps.now(),
            Served(model.version, 1, Timings()),
        )
        return _finished(item, result, Cause.MODEL)


def _results(
    batch: Batch,
    outputs: BatchOutputs,
    started_s: float,
    done_s: float,
    stamp: Stamp,
) -> list[Finished[Parcel]]:
    batch_ms = max((done_s - started_s) * 1000 - outputs.infer_ms, 0.0)
    model = batch[0].work.model
    finished = []
    for index, reading in enumerate(read(outputs, model)):
        held = batch[index].work
        waited_s = started_s - held.parcel.delivery.received_at
        timings = Timings(
            queue_ms=max(waited_s * 1000, 0.0),
            batch_ms=batch_ms,
            infer_ms=outputs.infer_ms,
        )
        served = Served(model.version, len(batch), timings)
        if isinstance(reading, Unreadable):
            result = failed(held.subject, reading.reason, stamp, served)
            cause = Cause.MODEL
        else:
            parts = outputs.part(index)
            result = answered(held.subject, parts, reading, served, stamp)
            cause = Cause.ANSWERED
        finished.append(_finished(batch[index], result, cause))
    return finished


def _culprit(item: Item[Held]) -> Culprit:
    subject, model = item.work.subject, item.work.model
    agent = item.work.parcel.agent
    return (agent, subject.device, subject.id, model.name, model.version)


def _finished(item: Item[Held], result: Result, cause: Cause) -> Finished[Parcel]:
    parcel = item.work.parcel
    return Finished(parcel.agent, result, parcel, cause)
