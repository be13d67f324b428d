"""The durable record of spills. Accepted means committed; nothing accepted is evicted.

Rows wait a few milliseconds for others, then share one fsync, and `accepted` follows.
A spill whose answer comes before that was never accepted: its answer is itself the
acknowledgement, so it is given at once, and the row that is written later only lets
a resent id hear the same again. Every other outcome is committed before it is told.

A disk that does not let the file be opened costs spills, not answers: `accept` refuses
with the reason until `keep_open` has opened it.

One thread owns the file. Times are milliseconds of the agent's own clock
(`lifecycle.clock.SteadyTime`), so that rows outlive the process.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final, Self, TypeVar

import structlog

from edge_agent.adapters.spill_ends import Ends
from edge_agent.adapters.spill_file import (
    OutboxFailed,
    OutboxUnusable,
)
from edge_agent.adapters.spill_groups import (
    Accepted,
    Committed,
    Groups,
    OutboxCounters,
    Overtaken,
)
from edge_agent.adapters.spill_room import OutboxFull, Room
from edge_agent.adapters.spill_rows import Ended, Recorded
from edge_agent.adapters.spill_table import Counts, SpillTable
from edge_agent.adapters.spill_thread import SpillThread
from edge_agent.core.delivery import (
    Channel,
    Key,
    Outcome,
    Spill,
    Stage,
    Step,
    Why,
    after_step,
)
from edge_agent.core.quotas import (
    QuotaLimits,
)
from lifecycle.journal import NOBODY, Event, Journal
from lifecycle.supervisor import Pauses

__all__ = [
    "Accepted",
    "Committed",
    "Counts",
    "Outbox",
    "OutboxFailed",
    "OutboxFull",
    "OutboxUnusable",
    "Overtaken",
    "Recorded",
    "enduring",
]

log = structlog.get_logger(__name__)

T = TypeVar("T")

FAILURE_PAUSE_S: Final = 1.0
ENDED_LATELY: Final = 4096


class Outbox:
    """Spills in SQLite (WAL). Use as `async with Outbox(path) as outbox`.

    Args:
        path: the database file; its folder exists.
        group_commit_ms: how long the first of a group waits for others.
        limits: open spills and their bytes above which `accept` refuses, in all
            and for one device.
        disk_reserve_bytes: free bytes below which `accept` refuses.
        journal: told before and after each commit.
    """

    def __init__(
        self,
        path: Path,
        *,
        group_commit_ms: float = 20.0,
        limits: QuotaLimits = QuotaLimits(),  # noqa: B008 - frozen
        disk_reserve_bytes: int = 0,
        journal: Journal = NOBODY,
    ) -> None:
        self._path = path
        self._group_s = group_commit_ms / 1000.0
        self._limits = limits
        self._reserve = disk_reserve_bytes
        self._journal = journal
        # In order of their ends; the values mean nothing.
        self._ended_lately: dict[Key, None] = {}
        self.counters = OutboxCounters()

    async def __aenter__(self) -> Self:
        """Open the file, or leave that to `keep_open` when the disk fails.

        Raises:
            OutboxUnusable: somebody must first mend what is named.
        """
        self._loop = asyncio.get_running_loop()
        self._room = Room(self._path, self._limits, self._reserve, self._loop.time)
        self._thread = SpillThread(self._path, self._room.restore)
        self._groups = Groups(
            self._thread,
            self._path,
            room=self._room,
            group_s=self._group_s,
            journal=self._journal,
            counters=self.counters,
        )
        self._ends = Ends(
            self._thread,
            on_first=self._first_end,
            on_failure=self._count_failure,
            on_commit=self._groups.tidy_up,
        )
        try:
            await self._thread.open()
        except OutboxFailed as error:
            log.error("outbox_not_opened", error=str(error))
        return self

    async def keep_open(self, pauses: Pauses) -> None:
        """Open the file once the disk lets it, if it did not at the start; endless.

        Args:
            pauses: how long to wait before each try.
        """
        while self._thread.unopened:
            await asyncio.sleep(pauses.next_s())
            try:
                await self._thread.open()
            except (OutboxFailed, OutboxUnusable) as error:
                log.error("outbox_not_opened", error=str(error))
            else:
                log.info("outbox_opened", open=self._room.quotas.total.rows)
        await self._loop.create_future()

    @property
    def error(self) -> str | None:
        """Why the file is not open; None when it is."""
        return self._thread.error

    @property
    def _table(self) -> SpillTable:
        """In the thread: the file; see `SpillThread.table`."""
        return self._thread.table

    async def __aexit__(self, *_: object) -> None:
        """Commit what is pending and close the file."""
        self._groups.hand_over()
        self._ends.commit()
        await self._thread.until_idle()
        self._groups.close()
        self._ends.close()
        await self._thread.close()

    # --- accept -------------------------------------------------------------------

    def accept(self, spill: Spill) -> Accepted:
        """Take a row for the next group commit.

        The future gives `Committed` once the row is on the disk, `Overtaken` when
        the spill ended first, or what is `Recorded` when the id is not new.

        Raises:
            OutboxFull: at once when a limit is reached, or nothing can store it;
                through the future when the disk refuses the write.
        """
        accepted: Accepted = self._loop.create_future()
        key = spill.key
        twin = self._groups.unaccepted(key)
        if twin is not None:
            # The same id twice before its commit: the second is a resend of the
            # first, no safer than that, and not a row of its own to be settled.
            twin.accepted.add_done_callback(
                functools.partial(_as_resend, accepted, twin.spill.encoding)
            )
            return accepted
        ended = self._groups.told(key)
        if ended is not None:
            # It has its outcome already, and must not get another.
            accepted.set_result(ended)
            return accepted
        self.check_room(spill.device, len(spill.request))
        self._groups.add(spill, accepted)
        return accepted

    def check_room(self, device: str, size: int) -> None:
        """Return if `accept` would take a request of `size` bytes now.

        Raises:
            OutboxFull: a limit is reached, or the file is not open; says which.
        """
        if self._thread.error is not None:
            raise OutboxFull(self._thread.error)
        self._room.check(device, size)

    def mostly_free(self, taken: float) -> bool:
        """Whether less than this share of its rows and of its bytes is taken.

        Args:
            taken: 0..1.
        """
        total, limits = self._room.quotas.total, self._limits
        return (
            self._thread.error is None
            and total.rows < taken * limits.max_rows
            and total.bytes < taken * limits.max_bytes
        )

    # --- settle -------------------------------------------------------------------

    def settle(
        self,
        key: Key,
        outcome: Outcome,
        answer: bytes,
        *,
        ended_ms: float,
        why: Why = Why.CLOUD,
        step: Step = Step.SETTLE,
    ) -> asyncio.Future[bool]:
        """Record the outcome of an open spill.

        Args:
            key: whose it is.
            outcome: how it ended.
            answer: as its device is told it.
            ended_ms: when.
            why: what brought it about.
            step: whether somebody must still be told.

        Gives whether it is the first; True at once for a spill that was not yet
        accepted, otherwise once the outcome is committed (which is tried for ever).
        """
        stage = after_step(Stage.OPEN, step)
        ended = Ended(key, outcome, why, answer, ended_ms, stage)
        if self._groups.fresh(key) is not None and key in self._ended_lately:
            # Sent twice at once, and the first has its outcome: the commit finds it.
            return self._at_once(first=False)
        if self._groups.overtake(ended):
            self._remember_end(key)
            self._journal.note(Event.ENDED, *key, outcome.value)
            return self._at_once(first=True)
        self._journal.note(Event.ENDING, *key, outcome.value)
        return self._ends.add(ended)

    def _at_once(self, *, first: bool) -> asyncio.Future[bool]:
        known: asyncio.Future[bool] = self._loop.create_future()
        known.set_result(first)
        return known

    def _remember_end(self, key: Key) -> None:
        self._ended_lately[key] = None
        if len(self._ended_lately) > ENDED_LATELY:
            del self._ended_lately[next(iter(self._ended_lately))]

    def _first_end(self, ended: Ended, size: int) -> None:
        self._remember_end(ended.key)
        self._room.ended(ended.key[0], size)
        self._journal.note(Event.ENDED, *ended.key, ended.outcome.value)

    def _count_failure(self) -> None:
        self.counters.write_failures += 1

    # --- the rest -----------------------------------------------------------------

    def is_fresh(self, key: Key) -> bool:
        """Whether a spill waits for its commit, and so is not accepted yet."""
        return self._groups.fresh(key) is not None

    async def find(self, key: Key) -> Recorded | None:
        """What is recorded of an id, if anything; waits for a commit under way.

        Raises:
            OutboxFailed: the file cannot be read now; so do all below.
        """
        fresh = self._groups.fresh(key)
        if fresh is not None:
            # A crash would still undo it: to tell of it now would be a promise.
            await asyncio.wait([fresh.accepted])
        ended = self._groups.told(key)
        if ended is not None:
            return ended
        return await self._run(lambda: self._table.find(key))

    async def get(self, key: Key) -> Spill | None:
        """The open spill of that id."""
        fresh = self._groups.fresh(key)
        if fresh is not None:
            return fresh.spill
        return await self._run(lambda: self._table.get(key))

    async def get_all(self, keys: Sequence[Key]) -> dict[Key, Spill]:
        """Those of the keys that are open, by key; what they ask is left out."""
        found = await self._run(lambda: self._table.get_all(keys))
        for key in keys:
            fresh = self._groups.fresh(key)
            if fresh is not None:
                found[key] = fresh.spill
        return found

    async def mark_told(self, keys: Sequence[Key], told_ms: float) -> None:
        """The device, or its broker, has acknowledged the answer."""
        written = [key for key in keys if not self._groups.tell(key)]
        if written:
            await self._run(lambda: self._table.mark_told(written, told_ms))

    async def reschedule(self, keys: Sequence[Key], due_ms: float) -> None:
        """Make open spills due at another time."""
        for key in keys:
            self._groups.reschedule(key, due_ms)
        await self._run(lambda: self._table.reschedule(keys, due_ms))

    async def claim_due(
        self,
        now_ms: float,
        *,
        limit: int,
        max_bytes: int,
        next_due_ms: Callable[[int], float],
    ) -> list[Spill]:
        """Take committed spills that are due; see `SpillTable.claim_due`."""
        return await self._run(
            lambda: self._table.claim_due(
                now_ms, limit=limit, max_bytes=max_bytes, next_due_ms=next_due_ms
            )
        )

    async def expired(self, now_ms: float, *, limit: int = 256) -> list[Spill]:
        """Open spills whose deadline has come, soonest first."""
        self._groups.hand_over()
        return await self._run(lambda: self._table.expired(now_ms, limit=limit))

    async def next_deadline_ms(self) -> float | None:
        """The soonest deadline of an open spill."""
        self._groups.hand_over()
        return await self._run(lambda: self._table.next_deadline_ms())  # noqa: PLW0108 - as above

    async def untold(self, *, limit: int = 256) -> list[tuple[Key, Channel, bytes]]:
        """Answers whose device has not acknowledged them, oldest first."""
        return await self._run(lambda: self._table.untold(limit=limit))

    async def counts(self) -> Counts:
        """Depth, age and outcomes."""
        self._groups.hand_over()
        open_bytes = self._room.quotas.total.bytes
        return await self._run(lambda: self._table.counts(open_bytes))

    async def give_up_untold(
        self, ended_before_ms: float, now_ms: float, *, limit: int = 1000
    ) -> list[Key]:
        """Record as undelivered what nobody has acknowledged since then."""
        return await self._run(
            lambda: self._table.give_up_untold(ended_before_ms, now_ms, limit=limit)
        )

    async def forget_closed(self, before_ms: float, *, limit: int = 1000) -> int:
        """Delete rows told or given up before then; gives how many went."""
        gone = await self._run(
            lambda: self._table.forget_closed(before_ms, limit=limit)
        )
        if gone:
            # An id that is forgotten is a new one.
            self._ended_lately.clear()
        return gone

    async def _run(self, work: Callable[[], T]) -> T:
        try:
            return await self._thread.run(work)
        finally:
            self._groups.tidy_up()


async def enduring(loop: Callable[[], Awaitable[None]]) -> None:
    """Run an endless loop that uses the outbox; a failing disk only makes it pause."""
    while True:
        try:
            await loop()
        except OutboxFailed as error:
            log.error("outbox_failed", error=str(error), retry_in_s=FAILURE_PAUSE_S)
            await asyncio.sleep(FAILURE_PAUSE_S)


def _as_resend(again: Accepted, encoding: str, first: Accepted) -> None:
    """End the wait of an id that came twice as that of the first ends."""
    if again.done():
        return
    if first.cancelled():
        again.cancel()
    elif (error := first.exception()) is not None:
        again.set_exception(error)
    elif isinstance(ended := first.result(), Committed):
        again.set_result(Recorded(Stage.OPEN, encoding))
    else:
        again.set_result(ended)
