"""Run what waits: batches to the runner, outputs to the replies.

What fails is `failing.py`'s, and those for whom there is no time `turning_away.py`'s.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from typing import Final, Protocol

from cloud_worker.adapters.failures import BatchFailed, ModelFailed
from cloud_worker.core.batcher import Batcher, Expire, Flush, Idle, Shed, WaitUntil
from cloud_worker.core.costs import Costs
from cloud_worker.core.line import Item, Signature
from cloud_worker.core.outputs import BatchOutputs
from cloud_worker.core.spec import padded_size
from cloud_worker.loops.capturing import Capturing
from cloud_worker.loops.dead_letters import DeadLetters
from cloud_worker.loops.failing import Failing
from cloud_worker.loops.parcels import Held
from cloud_worker.loops.replies import Replies
from cloud_worker.loops.turning_away import TurningAway
from cloud_worker.loops.write_up import Batch, results
from lifecycle.clock import Clock

# A batch that takes so many times what it should, and not less than this, is late.
LATE_TIMES: Final = 4.0
LEAST_LATE_S: Final = 0.1


class BatchRunner(Protocol):
    """What runs batches, as `adapters.runners.Runners` does."""

    @property
    def running(self) -> int:
        """Batches submitted and not finished."""
        ...

    def ready(self, key: str) -> bool:
        """Whether a batch of this model may be submitted."""
        ...

    def submit(
        self,
        key: str,
        signature: Signature,
        requests: list[tuple[bytes, ...]],
        *,
        limit_s: float | None = None,
    ) -> asyncio.Future[BatchOutputs]:
        """Start a batch; the future raises BatchFailed."""
        ...


class Infer:
    """The loop between what waits and what is answered.

    Args:
        runner: runs batches.
        batcher: decides which.
        costs: told what each batch took; the batcher decides by it.
        replies: takes the results.
        dead_letters: keeps the requests that broke their batches.
        clock: for deadlines and costs.
        capturing: keeps answered requests as examples, where there is a folder.
    """

    def __init__(  # noqa: PLR0913 - the parts it stands on
        self,
        runner: BatchRunner,
        batcher: Batcher[Held],
        *,
        costs: Costs,
        replies: Replies,
        dead_letters: DeadLetters,
        clock: Clock,
        capturing: Capturing | None = None,
    ) -> None:
        self._runner = runner
        self._batcher = batcher
        self._costs = costs
        self._replies = replies
        self._failing = Failing(
            batcher, replies=replies, dead_letters=dead_letters, clock=clock
        )
        self._turning_away = TurningAway(replies, clock)
        self._clock = clock
        self._capturing = capturing
        self._changed = asyncio.Event()
        self._batches: asyncio.TaskGroup | None = None
        self._last_done_s = 0.0
        self._submitted: Counter[str] = Counter()
        self._late: Counter[str] = Counter()
        self._given_up: dict[str, str] = {}

    @property
    def in_use(self) -> set[str]:
        """The model versions that requests wait for or run on."""
        running = {key for key, count in self._submitted.items() if count}
        return self._batcher.keys | running

    def offer(self, items: Iterable[Item[Held]]) -> None:
        """Let requests wait for their batch, which may start before this returns."""
        for item in items:
            self._batcher.add(item)
        if self._batches is None or self._start_batches(self._batches) is not None:
            self._changed.set()

    def wake(self) -> None:
        """Look again: a model is ready again, or was given up."""
        self._changed.set()

    def give_up(self, key: str, why: str) -> None:
        """Answer `failed` to those that wait for a version that will not come."""
        self._given_up[key] = why
        self._changed.set()

    def expect(self, key: str) -> None:
        """A version is in memory: those that wait for it run."""
        self._given_up.pop(key, None)
        self._changed.set()

    async def run(self) -> None:
        """Run batches, for ever."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as batches:
            self._batches = self._failing.tasks = batches
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
            step = self._batcher.next_step(
                now, running=self._running_in_time(), ready=self._ready
            )
            match step:
                case Flush(items, due_s):
                    self._start(batches, items, now, due_s)
                case Expire(items):
                    self._turning_away.expire(items, now)
                case Shed(items, own_wait_s):
                    self._turning_away.shed(items, own_wait_s, now)
                case WaitUntil(at_s):
                    return max(at_s - now, 0.0)
                case Idle():
                    return None

    def _running_in_time(self) -> int:
        """Batches submitted and not finished, without those behind one that is late."""
        held_up = sum(self._submitted[key] for key in self._late)
        return max(self._runner.running - held_up, 0)

    def _ready(self, key: str) -> bool:
        if key in self._given_up:
            return True
        return key not in self._late and self._runner.ready(key)

    def _start(
        self, batches: asyncio.TaskGroup, items: Batch, now: float, due_s: float
    ) -> None:
        batch = tuple(item for item in items if self._may_run(item))
        if not batch:
            return
        group = batch[0].group
        if (why := self._given_up.get(group.key)) is not None:
            self._failing.fail(batch, why)
            return
        self._submitted[group.key] += 1
        self._replies.observer.batch_started(batch, len(self._batcher))
        outputs = self._runner.submit(
            group.key,
            group.signature,
            [item.work.inputs.buffers for item in batch],
            limit_s=self._costs.limit_s(group.key, _size(batch), group.size_bucket),
        )
        if outputs.done():
            # It ran inline, where nothing idles while its results are written up.
            self._take(batch, outputs, now, self._clock.monotonic())
            # After the runner's own callback, which counts it as ended.
            outputs.add_done_callback(lambda _: self._changed.set())
        else:
            batches.create_task(self._collect(batches, batch, outputs, now, due_s))

    def _may_run(self, item: Item[Held]) -> bool:
        """Whether a request should run; one that should not is dealt with here."""
        if item.work.over:
            return False
        if not item.work.parcel.live:
            if item.work.end():
                item.work.parcel.drop()
            return False
        return not self._failing.holds_back(item)

    async def _collect(
        self,
        batches: asyncio.TaskGroup,
        batch: Batch,
        running: asyncio.Future[BatchOutputs],
        started_s: float,
        due_s: float,
    ) -> None:
        patience_s = max(LEAST_LATE_S, LATE_TIMES * (due_s - started_s))
        await asyncio.wait((running,), timeout=patience_s)
        if not running.done():
            await self._wait_while_others_run(batch[0].group.key, running)
        done_s = self._clock.monotonic()
        # The runner first: it should not idle while results are written up.
        if running.exception() is None and self._start_batches(batches) is not None:
            self._changed.set()
        self._take(batch, running, started_s, done_s)

    async def _wait_while_others_run(
        self, key: str, late: asyncio.Future[BatchOutputs]
    ) -> None:
        """Wait for a batch that is late, or hangs, and holds up no other model."""
        self._late[key] += 1
        self._changed.set()
        try:
            # The runner itself bounds the time.
            await asyncio.wait((late,))
        finally:
            self._late[key] -= 1
            if not self._late[key]:
                del self._late[key]
            self._changed.set()

    def _take(
        self,
        batch: Batch,
        done: asyncio.Future[BatchOutputs],
        started_s: float,
        done_s: float,
    ) -> None:
        """Write up what the runner made of a batch."""
        try:
            self._write_up(batch, done, started_s, done_s)
        finally:
            self._submitted[batch[0].group.key] -= 1

    def _write_up(
        self,
        batch: Batch,
        done: asyncio.Future[BatchOutputs],
        started_s: float,
        done_s: float,
    ) -> None:
        try:
            outputs = done.result()
        except ModelFailed as error:
            # No request is to blame, and none can be helped by another try.
            self._replies.observer.batch_failed(batch)
            self._failing.fail(batch, str(error))
            return
        except BatchFailed as error:
            self._replies.observer.batch_failed(batch)
            self._failing.retry_or_fail(batch, error)
            self._changed.set()
            return
        self._learn(batch, outputs, started_s, done_s)
        self._failing.acquit(batch)
        self._replies.observer.batch_ended(batch, started_s, done_s, outputs.infer_ms)
        stamp = self._replies.stamps.now(batch[0].work.model.name)
        answered = results(batch, outputs, started_s, done_s, stamp)
        self._replies.finish(answered)
        if self._capturing is not None:
            # They are on their way already.
            self._capturing.offer(batch, answered)

    def _learn(
        self, batch: Batch, outputs: BatchOutputs, started_s: float, done_s: float
    ) -> None:
        """Note for how long the batch kept the accelerator."""
        group = batch[0].group
        # It may have lain ready behind another, which is no cost of its own.
        alone_s = done_s - max(started_s, self._last_done_s)
        took_s = max(alone_s, outputs.infer_ms / 1000)
        self._last_done_s = done_s
        self._costs.note(group.key, _size(batch), took_s, group.size_bucket)


def _size(batch: Batch) -> int:
    rows = sum(item.rows for item in batch)
    return padded_size(rows, batch[0].group.max_rows)
