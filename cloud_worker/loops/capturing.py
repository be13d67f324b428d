"""Keep answered requests as examples, after their answers and never at their price.

What may be kept waits in a line, bounded by number and bytes; a thread writes it. A full
line, a disk that is full or one that hangs costs examples, which are counted, and
nothing else.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from functools import partial
from typing import Final, Protocol

import structlog

from broker.messages import Reason, Request
from cloud_worker.adapters.example_index import CannotKeep
from cloud_worker.adapters.example_store import Captured, Fill, Told
from cloud_worker.core.examples import may_keep
from cloud_worker.core.ledger import Cause
from cloud_worker.core.line import Item
from cloud_worker.core.replies import Finished
from cloud_worker.core.spec import ServedModel
from cloud_worker.loops.parcels import Held, Parcel
from lifecycle.clock import Clock
from lifecycle.threads import in_daemon_thread

log = structlog.get_logger(__name__)

MAX_WAITING: Final = 1024
MAX_WAITING_BYTES: Final = 64 * 1024**2
AT_ONCE: Final = 64
# A disk that takes longer is away.
TIMEOUT_S: Final = 30.0
TRY_AGAIN_S: Final = 60.0


class Fate(StrEnum):
    """What became of a request that came here to be kept."""

    KEPT = "kept"
    AGAIN = "again"
    """The same inputs are kept already."""
    EVICTED = "evicted"
    """It was kept, and went for one that is worth more."""
    TURNED_AWAY = "turned_away"
    """There is no room, and what is kept is worth more."""
    FORBIDDEN = "forbidden"
    """Its device, agent or bundle does not want it kept."""
    SEVERAL_ROWS = "several_rows"
    """One answer is no label for many rows."""
    LINE_FULL = "line_full"
    """The disk is slower than the requests."""
    STOPPED = "stopped"
    """The disk does not let anything be kept."""


class Store(Protocol):
    """Where examples are kept, as `adapters.example_store.ExampleStore` does."""

    def keep(self, captured: Iterable[Captured]) -> list[Told]:
        """Keep what is worth it; blocks.

        Raises:
            CannotKeep: the disk does not let it.
        """
        ...

    def fill(self) -> dict[str, Fill]:
        """How much is kept, by model."""
        ...


Counted = tuple[str, Reason, Fate]


class Capturing:
    """The line of what is to be kept, and the loop that has it written.

    Args:
        store: writes; used by one thread at a time.
        clock: for when.
        worker_says: the worker's own setting; None leaves it to the models.
        try_again_s: after the disk had failed.
        timeout_s: for one write of some examples.
        max_waiting: examples in the line.

    Attributes:
        counts: by model, reason and fate.
        stopped: why nothing could be kept when it was last tried; None when it could.
        fill: how much is kept, by model.
    """

    def __init__(
        self,
        store: Store,
        *,
        clock: Clock,
        worker_says: bool | None,
        try_again_s: float = TRY_AGAIN_S,
        timeout_s: float = TIMEOUT_S,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        self._store = store
        self._clock = clock
        self._worker_says = worker_says
        self._try_again_s = try_again_s
        self._timeout_s = timeout_s
        self._max_waiting = max_waiting
        self._line: deque[Captured] = deque()
        self._line_bytes = 0
        self._paused = False
        self._more = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.counts: Counter[Counted] = Counter()
        self.stopped: str | None = None
        self.fill: Mapping[str, Fill] = {}

    # --- for the loops that answer ----------------------------------------------------

    def wants(self, request: Request, model: ServedModel, rows: int) -> bool:
        """Whether a request should be remembered until it is answered."""
        says = {"model": model.capture, "worker": self._worker_says}
        if not may_keep(request=request.capture, **says):
            if may_keep(request=None, **says):
                self._count(request, Fate.FORBIDDEN)
            return False
        if model.spec.batched and rows != 1:
            self._count(request, Fate.SEVERAL_ROWS)
            return False
        if self._paused:
            self._count(request, Fate.STOPPED)
            return False
        return True

    def offer(
        self, batch: Iterable[Item[Held]], finished: Sequence[Finished[Parcel]]
    ) -> None:
        """Take in a batch that has been answered; returns at once.

        Args:
            batch: as it ran.
            finished: what its requests got, which is on its way already.
        """
        asked = {
            (item.work.parcel.agent, item.work.subject.device, item.work.subject.id): (
                item.work
            )
            for item in batch
            if item.work.asked is not None
        }
        if not asked:
            return
        now_ms = self._clock.wall_ms()
        for each in finished:
            result = each.result
            held = asked.get((each.agent, result.device, result.id))
            if held is None or held.asked is None or each.cause is not Cause.ANSWERED:
                continue
            self._wait(
                Captured(
                    held.asked,
                    each.agent,
                    result,
                    held.model,
                    now_ms,
                    batched=_has_batch_axis(held),
                )
            )

    def _wait(self, captured: Captured) -> None:
        size_bytes = captured.size_bytes
        if self._paused:
            self._count(captured.request, Fate.STOPPED)
            return
        if (
            len(self._line) >= self._max_waiting
            or self._line_bytes + size_bytes > MAX_WAITING_BYTES
        ):
            self._count(captured.request, Fate.LINE_FULL)
            return
        self._line.append(captured)
        self._line_bytes += size_bytes
        self._idle.clear()
        self._more.set()

    # --- the loop -----------------------------------------------------------------

    async def run(self) -> None:
        """Have what waits written, for ever."""
        self._more.set()
        while True:
            await self._more.wait()
            self._more.clear()
            while self._line:
                why = await self._write(self._next())
                if why is not None:
                    await self._pause(why)
            self._idle.set()

    async def finish(self, within_s: float) -> None:
        """Return once nothing waits, or the time is over."""
        try:
            async with asyncio.timeout(within_s):
                await self._idle.wait()
        except TimeoutError:
            log.warning("examples_not_kept", left=len(self._line))

    def _next(self) -> list[Captured]:
        batch: list[Captured] = []
        while self._line and len(batch) < AT_ONCE:
            each = self._line.popleft()
            self._line_bytes -= each.size_bytes
            batch.append(each)
        return batch

    async def _write(self, batch: list[Captured]) -> str | None:
        """Have some written; says why nothing can be, if so."""
        work = in_daemon_thread(partial(self._store.keep, batch), "examples")
        await asyncio.wait((work,), timeout=self._timeout_s)
        if not work.done():
            self._stop(f"the disk has not answered for {self._timeout_s:g} s")
            # It may come back; nobody else may use the store until then.
            await asyncio.wait((work,))
        try:
            told = work.result()
        except CannotKeep as error:
            self._count_all(batch, Fate.STOPPED)
            return str(error)
        for each in told:
            self._count_told(each)
        self.fill = self._store.fill()
        self._go_on()
        return None

    async def _pause(self, why: str) -> None:
        self._stop(why)
        await asyncio.sleep(self._try_again_s)
        # The next one is let in, and shows whether the disk works again.
        self._paused = False

    def _stop(self, why: str) -> None:
        # Once: a disk that stays full is one line in the log.
        if self.stopped is None:
            log.error("capture_stopped", reason=why, try_again_s=self._try_again_s)
        self.stopped, self._paused = why, True
        self._count_all(self._line, Fate.STOPPED)
        self._line.clear()
        self._line_bytes = 0
        self._idle.set()

    def _go_on(self) -> None:
        if self.stopped is not None:
            log.info("capture_goes_on", after=self.stopped)
        self.stopped, self._paused = None, False

    def _count_told(self, told: Told) -> None:
        request = told.captured.request
        if told.kept:
            self._count(request, Fate.AGAIN if told.again else Fate.KEPT)
        else:
            self._count(request, Fate.TURNED_AWAY)
        for reason in told.evicted:
            self.counts[request.model, Reason(reason), Fate.EVICTED] += 1

    def _count_all(self, captured: Iterable[Captured], fate: Fate) -> None:
        for each in captured:
            self._count(each.request, fate)

    def _count(self, request: Request, fate: Fate) -> None:
        self.counts[request.model, request.reason, fate] += 1


def _has_batch_axis(held: Held) -> bool:
    """Whether the tensors of a request were sent with the batch's axis before them."""
    if held.asked is None or not held.model.spec.batched:
        return False
    sent = held.asked.tensors or {}
    ranks = {name: len(shape) for name, _, shape in held.inputs.signature}
    return all(len(each.shape) == ranks.get(name) for name, each in sent.items())
