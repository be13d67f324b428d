"""End every spill once, and tell its device. Recorded first, told after.

A result, a deadline or a resent id may come in any order and more than once; the
outbox lets the first one win, and only the winner is told.
"""

from __future__ import annotations

import asyncio
import functools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import structlog

from broker.codec import WireError, decode
from broker.link import LinkDown
from broker.messages import Result
from edge_agent.adapters.outbox import Outbox, OutboxFailed, enduring
from edge_agent.core.answers import Answer
from edge_agent.core.delivery import (
    Channel,
    Ending,
    Key,
    Retry,
    Spill,
    cancel,
    conclude,
    expire,
    settling_step,
)
from edge_agent.core.payload import Encoding, render
from edge_agent.core.pool_clock import PoolClock
from edge_agent.loops.spans import RequestSpans
from edge_agent.loops.uplink import Link, Uplink
from lifecycle.journal import NOBODY, Event, Journal

log = structlog.get_logger(__name__)

FORGET_ROWS: Final = 1000
FORGET_EVERY_S: Final = 60.0
RECENT_SPILLS: Final = 2048
REMEMBERED_BYTES: Final = 4096
UNMATCHED_RESULTS: Final = 4096
MATCHED_TOGETHER: Final = 512
TELLERS: Final = 8
TELL_QUEUE: Final = 4096
LOOK_EVERY_S: Final = 1.0
COMMIT_PAUSE_MS: Final = 20.0
UNTOLD_ROWS: Final = 256


@dataclass(slots=True)
class OutcomeCounters:
    """What has happened since the start."""

    results: int = 0
    duplicates: int = 0
    strangers: int = 0
    unreadable: int = 0
    results_dropped: int = 0
    told: int = 0
    tell_failures: int = 0
    tell_queue_full: int = 0
    undelivered: int = 0


class Outcomes:
    """Matches results to spills, keeps deadlines, tells devices."""

    def __init__(  # noqa: PLR0913 - the parts it stands on
        self,
        *,
        outbox: Outbox,
        uplink: Uplink,
        local: Link | None,
        now_ms: Callable[[], float],
        keep_outcomes_s: float,
        keep_untold_s: float = 7 * 86400.0,
        journal: Journal = NOBODY,
        spans: RequestSpans | None = None,
    ) -> None:
        self._outbox = outbox
        self._uplink = uplink
        uplink.on_claim = self.expect
        self._local = local
        self._now_ms = now_ms
        self._keep_ms = keep_outcomes_s * 1000.0
        self._keep_untold_ms = keep_untold_s * 1000.0
        self._journal = journal
        self._spans = spans
        self._recent: OrderedDict[Key, Spill] = OrderedDict()
        self._waiting: dict[Key, list[asyncio.Future[Answer]]] = {}
        self._unmatched: asyncio.Queue[Result] = asyncio.Queue(UNMATCHED_RESULTS)
        self._to_tell: asyncio.Queue[tuple[Key, bytes]] = asyncio.Queue(TELL_QUEUE)
        self._ending: set[Key] = set()
        self._telling: set[Key] = set()
        self._look_for_untold = asyncio.Event()
        self._more_untold = False
        self._retries: list[Key] = []
        self._retry_wanted = asyncio.Event()
        # Unknown until the first look: an earlier life may have left open rows.
        self._soonest_ms = 0.0
        self._sooner = asyncio.Event()
        self._offset_known = False
        # Told of every legible result, and of each spill's one outcome.
        self.on_result: Callable[[Result], None] = lambda _: None
        self.on_outcome: Callable[[Spill, Ending], None] = lambda _, __: None
        self.counters = OutcomeCounters()

    @property
    def knows_pool_time(self) -> bool:
        """Whether the pool has told its time since the start."""
        return self._offset_known

    # --- called by those who spill -------------------------------------------------

    def expect(self, spill: Spill) -> None:
        """Remember a spill that is about to be sent, so that its result finds it."""
        if len(spill.request) > REMEMBERED_BYTES:
            # What it asks is in the outbox; many large ones would fill the memory.
            spill = replace(spill, request=b"")
        self._recent[spill.key] = spill
        while len(self._recent) > RECENT_SPILLS:
            self._recent.popitem(last=False)
        if spill.deadline_ms < self._soonest_ms:
            self._soonest_ms = spill.deadline_ms
            self._sooner.set()

    def forget(self, key: Key) -> None:
        """The spill was not accepted after all."""
        self._recent.pop(key, None)

    def wait_for(self, key: Key) -> asyncio.Future[Answer]:
        """A future of the answer, for a caller in this process."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, []).append(future)
        future.add_done_callback(functools.partial(self._stop_waiting, key))
        return future

    def _stop_waiting(self, key: Key, future: asyncio.Future[Answer]) -> None:
        waiting = self._waiting.get(key)
        if waiting is not None and future in waiting:
            waiting.remove(future)
            if not waiting:
                del self._waiting[key]

    # --- results ----------------------------------------------------------------

    def on_results(self, payload: bytes) -> None:
        """Take an envelope of results from the cloud's link."""
        try:
            envelope = decode(payload, Result)
        except WireError as error:
            self.counters.unreadable += 1
            log.warning("results_unreadable", error=str(error))
            return
        self.counters.unreadable += len(envelope.bad)
        for result in envelope.items:
            self.counters.results += 1
            if self._spans is not None:
                self._spans.heard((result.device, result.id))
            self._learn_clock(result)
            self.on_result(result)
            spill = self._recent.get((result.device, result.id))
            if spill is not None:
                self._conclude(spill, result)
                continue
            try:
                self._unmatched.put_nowait(result)
            except asyncio.QueueFull:
                # Harmless: without an outcome the request is sent again.
                self.counters.results_dropped += 1
                log.warning("results_dropped", waiting=UNMATCHED_RESULTS)

    def _learn_clock(self, result: Result) -> None:
        if result.server_time_ms <= 0:
            return
        now_ms = self._now_ms()
        spill = self._recent.get((result.device, result.id))
        known = PoolClock(self._uplink.pool_offset_ms, self._offset_known).after(
            result.server_time_ms - now_ms,
            None if spill is None else now_ms - spill.accepted_ms,
        )
        self._uplink.pool_offset_ms = known.offset_ms
        self._offset_known = known.known

    def _conclude(self, spill: Spill, result: Result) -> None:
        match conclude(spill, result, self._now_ms()):
            case Ending() as ending:
                self._end(spill, ending)
            case Retry():
                self._retries.append(spill.key)
                self._retry_wanted.set()

    def _end(self, spill: Spill, ending: Ending) -> None:
        """Record, then tell: the callback runs once the outcome is committed."""
        self._recent.pop(spill.key, None)
        self._ending.add(spill.key)
        if spill.channel is Channel.CALL and self._outbox.is_fresh(spill.key):
            # Never accepted: the answer is itself the acknowledgement, and the
            # caller is woken before the row is written up.
            self._wake(spill.key, ending.answer)
            asyncio.get_running_loop().call_soon(self._record, spill, ending)
        else:
            _ = self._record(spill, ending)

    async def cancel(self, key: Key) -> bool:
        """End an open spill because the operator says so; False when none is open.

        Raises:
            OutboxFailed: the file cannot be read now.
        """
        spill = await self._outbox.get(key)
        if spill is None or key in self._ending:
            return False
        self._recent.pop(key, None)
        self._ending.add(key)
        return await self._record(spill, cancel(spill, self._now_ms()))

    def _record(self, spill: Spill, ending: Ending) -> asyncio.Future[bool]:
        answer = render(ending.answer, Encoding(spill.encoding))
        recorded = self._outbox.settle(
            spill.key,
            ending.outcome,
            answer,
            ended_ms=self._now_ms(),
            why=ending.why,
            step=settling_step(spill.channel),
        )
        if recorded.done():
            # Never accepted, so the answer need not wait for a turn of the loop.
            self._tell(spill, ending, answer, recorded)
        else:
            recorded.add_done_callback(
                functools.partial(self._tell, spill, ending, answer)
            )
        return recorded

    def _tell(
        self, spill: Spill, ending: Ending, rendered: bytes, won: asyncio.Future[bool]
    ) -> None:
        self._ending.discard(spill.key)
        if won.cancelled() or won.exception() is not None:
            return
        if not won.result():
            self.counters.duplicates += 1
            return
        answer = ending.answer
        self._wake(spill.key, answer)
        if self._spans is not None:
            self._spans.ended(spill.key, answer, spill.channel is Channel.CALL)
        # The look for untold answers may have found this one between its commit and
        # this call, and is telling it already.
        if spill.channel is Channel.MQTT and spill.key not in self._telling:
            self._enqueue(spill.key, rendered)
        self.on_outcome(spill, ending)

    def _wake(self, key: Key, answer: Answer) -> None:
        """Answer the callers in this process that wait for a spill."""
        for future in self._waiting.pop(key, ()):
            if not future.done():
                future.set_result(answer)

    def tell_again(self, key: Key, rendered: bytes) -> None:
        """A device has resent an id whose outcome is recorded."""
        self._enqueue(key, rendered)

    def _enqueue(self, key: Key, rendered: bytes) -> None:
        try:
            self._to_tell.put_nowait((key, rendered))
            self._telling.add(key)
        except asyncio.QueueFull:
            # The row stays untold, and is found once there is room; what was told
            # before is heard again when the device sends its id once more.
            self.counters.tell_queue_full += 1
            self._more_untold = True

    def local_link_changed(self, up: bool) -> None:
        """Tell what could not be told while the devices' broker was away."""
        if up:
            self._look_for_untold.set()

    # --- loops --------------------------------------------------------------------

    async def run(self) -> None:
        """Run every loop until cancelled."""
        loops = [
            self._match_late_results,
            self._keep_deadlines,
            self._send_again,
            self._give_up_and_forget,
        ]
        if self._local is not None:
            tell = functools.partial(self._tell_for_ever, self._local)
            loops += [self._find_untold, *[tell] * TELLERS]
        async with asyncio.TaskGroup() as tasks:
            for loop in loops:
                tasks.create_task(enduring(loop))

    async def _match_late_results(self) -> None:
        """Results of spills that are in the outbox only."""
        while True:
            results = [await self._unmatched.get()]
            while len(results) < MATCHED_TOGETHER and not self._unmatched.empty():
                results.append(self._unmatched.get_nowait())
            keys = [(each.device, each.id) for each in results]
            try:
                spills = await self._outbox.get_all(keys)
            except OutboxFailed:
                # Harmless, as above: their requests are sent again.
                self.counters.results_dropped += len(results)
                raise
            for key, result in zip(keys, results, strict=True):
                spill = spills.get(key)
                if spill is None:
                    self.counters.strangers += 1
                    log.debug("result_ignored", id=result.id, device=result.device)
                else:
                    self._conclude(spill, result)

    async def _send_again(self) -> None:
        while True:
            await self._retry_wanted.wait()
            self._retry_wanted.clear()
            keys, self._retries = self._retries, []
            # A pause, so that two clocks that disagree do not make a hot loop.
            await self._outbox.reschedule(keys, self._now_ms() + 200.0)

    async def _keep_deadlines(self) -> None:
        while True:
            wait_s = max(0.0, min(LOOK_EVERY_S, self._seconds_left()))
            try:
                async with asyncio.timeout(wait_s):
                    await self._sooner.wait()
                self._sooner.clear()
                continue
            except TimeoutError:
                pass
            if self._now_ms() < self._soonest_ms and self._soonest_ms != float("inf"):
                continue
            self._soonest_ms = float("inf")
            await self._end_expired()
            soonest = await self._outbox.next_deadline_ms()
            if soonest is not None:
                if soonest <= self._now_ms():
                    # More than one look ends, or outcomes that wait for their commit.
                    soonest = self._now_ms() + COMMIT_PAUSE_MS
                # A spill may have come meanwhile whose deadline is sooner.
                self._soonest_ms = min(self._soonest_ms, soonest)

    async def _end_expired(self) -> None:
        for spill in await self._outbox.expired(self._now_ms()):
            if spill.key not in self._ending:
                self._end(spill, expire(spill, self._now_ms()))

    def _seconds_left(self) -> float:
        return (self._soonest_ms - self._now_ms()) / 1000.0

    async def _find_untold(self) -> None:
        self._look_for_untold.set()
        while True:
            try:
                async with asyncio.timeout(10 * LOOK_EVERY_S):
                    await self._look_for_untold.wait()
            except TimeoutError:
                pass
            self._look_for_untold.clear()
            if self._local is None or not self._local.up:
                continue
            untold = await self._outbox.untold(limit=UNTOLD_ROWS)
            self._more_untold = len(untold) == UNTOLD_ROWS
            for key, channel, rendered in untold:
                if channel is Channel.MQTT and key not in self._telling:
                    self._enqueue(key, rendered)

    async def _tell_for_ever(self, local: Link) -> None:
        while True:
            key, rendered = await self._to_tell.get()
            try:
                self._journal.note(Event.TELLING, *key)
                await local.publish(f"answer/{key[0]}", rendered)
            except LinkDown:
                self.counters.tell_failures += 1
                log.debug("device_not_told", device=key[0], id=key[1])
            else:
                self.counters.told += 1
                self._journal.note(Event.TOLD, *key)
                if self._spans is not None:
                    self._spans.told(key)
                await self._outbox.mark_told([key], self._now_ms())
                self._journal.note(Event.MARKED, *key)
            finally:
                self._telling.discard(key)
                if self._more_untold and len(self._telling) < UNTOLD_ROWS // 2:
                    self._look_for_untold.set()

    async def _give_up_and_forget(self) -> None:
        while True:
            await self._give_up_untold()
            before = self._now_ms() - self._keep_ms
            while await self._outbox.forget_closed(before, limit=FORGET_ROWS) == (
                FORGET_ROWS
            ):
                pass
            await asyncio.sleep(FORGET_EVERY_S)

    async def _give_up_untold(self) -> None:
        """Record as undelivered the answers that nobody has taken for too long."""
        more = True
        while more:
            now_ms = self._now_ms()
            lost = await self._outbox.give_up_untold(
                now_ms - self._keep_untold_ms, now_ms, limit=FORGET_ROWS
            )
            more = len(lost) == FORGET_ROWS
            if lost:
                self.counters.undelivered += len(lost)
                log.warning(
                    "answers_undelivered",
                    count=len(lost),
                    first=lost[0],
                    after_s=self._keep_untold_ms / 1000.0,
                )
