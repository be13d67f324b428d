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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self, TypeAlias, TypeVar

import structlog

from edge_agent.adapters.spill_ends import Ends
from edge_agent.adapters.spill_file import (
    OutboxFailed,
    OutboxUnusable,
)
from edge_agent.adapters.spill_room import OutboxFull, Room, free_bytes
from edge_agent.adapters.spill_rows import Ended, OpenRow, Recorded, open_row
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
GROUP_ROWS: Final = 256
MANY_ROWS: Final = 64
BUSY_ROWS: Final = 32
# A timer comes up to a millisecond late, and a thread must wake: begin a little before
# the window ends, so that it holds.
BEGIN_AT: Final = 0.85
UNWRITTEN_ROWS: Final = 10_000
ENDED_LATELY: Final = 4096


@dataclass(frozen=True, slots=True)
class Committed:
    """The row is on the disk."""


@dataclass(frozen=True, slots=True)
class Overtaken:
    """The spill ended before its row was committed."""


COMMITTED: Final = Committed()

Accepted: TypeAlias = asyncio.Future[Committed | Overtaken | Recorded]


@dataclass(slots=True)
class _Fresh:
    """A row that waits for its group.

    It is made here and not in the thread, which would have to wait for the interpreter.
    """

    spill: Spill
    row: OpenRow
    accepted: Accepted
    since_s: float


@dataclass(frozen=True, slots=True)
class _Written:
    """What became of a group.

    Attributes:
        known: the ids that were not new, and what is recorded of them.
        freed: the open rows that ended with it, and their sizes.
        free_bytes: of the disk, before it.
    """

    known: dict[Key, Recorded | None]
    freed: tuple[tuple[Key, int], ...]
    free_bytes: int


@dataclass(slots=True)
class OutboxCounters:
    """What has happened since the start.

    Attributes:
        groups: commits of accepted rows.
        write_failures: transactions that the disk refused.
        records_dropped: answers that were told, whose rows could not be written for so
            long that they are no longer kept: sent again, their ids are new.
    """

    groups: int = 0
    write_failures: int = 0
    records_dropped: int = 0


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
        self._fresh: dict[Key, _Fresh] = {}
        self._writing: dict[Key, _Fresh] = {}
        self._overtaken: dict[Key, tuple[Spill, Ended]] = {}
        self._being_written: dict[Key, tuple[Spill, Ended]] = {}
        # In order of their ends; the values mean nothing.
        self._ended_lately: dict[Key, None] = {}
        self._group: asyncio.Handle | None = None
        self._groups_under_way = 0
        self._closed = False
        self.counters = OutboxCounters()

    async def __aenter__(self) -> Self:
        """Open the file, or leave that to `keep_open` when the disk fails.

        Raises:
            OutboxUnusable: somebody must first mend what is named.
        """
        self._loop = asyncio.get_running_loop()
        self._room = Room(self._path, self._limits, self._reserve, self._loop.time)
        self._thread = SpillThread(self._path, self._room.restore)
        self._ends = Ends(
            self._thread,
            on_first=self._first_end,
            on_failure=self._count_failure,
            on_commit=self._tidy_up,
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
        self._hand_over()
        self._ends.commit()
        await self._thread.until_idle()
        self._closed = True
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
        twin = self._fresh.get(key) or self._writing.get(key)
        if twin is not None:
            # The same id twice before its commit: the second is a resend of the
            # first, no safer than that, and not a row of its own to be settled.
            twin.accepted.add_done_callback(
                functools.partial(_as_resend, accepted, twin.spill.encoding)
            )
            return accepted
        ended = self._told_unwritten(key)
        if ended is not None:
            # It has its outcome already, and must not get another.
            accepted.set_result(ended)
            return accepted
        device, size = spill.device, len(spill.request)
        self.check_room(device, size)
        row = _row(spill)
        self._room.take(device, size)
        self._fresh[key] = _Fresh(spill, row, accepted, self._loop.time())
        waiting = len(self._fresh)
        if waiting < MANY_ROWS:
            self._start_group()
        elif waiting == MANY_ROWS and not self._groups_under_way:
            # Company enough; who comes meanwhile shares the next commit.
            self._hand_over()
        elif waiting >= GROUP_ROWS:
            self._hand_over()
        return accepted

    def _told_unwritten(self, key: Key) -> Recorded | None:
        """What is known of a spill that ended before its row was written."""
        found = self._overtaken.get(key) or self._being_written.get(key)
        if found is None:
            return None
        spill, ended = found
        return Recorded(ended.stage, spill.encoding, ended.outcome, ended.answer)

    def check_room(self, device: str, size: int) -> None:
        """Return if `accept` would take a request of `size` bytes now.

        Raises:
            OutboxFull: a limit is reached, or the file is not open; says which.
        """
        if self._thread.error is not None:
            raise OutboxFull(self._thread.error)
        self._room.check(device, size)

    def _start_group(self) -> None:
        if self._group is None:
            self._group = self._loop.call_later(
                self._group_s * BEGIN_AT, self._group_is_due
            )

    def _stop_group(self) -> None:
        if self._group is not None:
            self._group.cancel()
            self._group = None

    def _group_is_due(self) -> None:
        """Commit the group, but for rows so young that their answer may be near.

        A row that is committed just before its answer comes costs that answer an
        fsync. With many rows waiting, one more costs nothing.
        """
        young: dict[Key, _Fresh] = {}
        if len(self._fresh) < BUSY_ROWS:
            since_s = self._loop.time() - self._group_s / 2
            young = {k: v for k, v in self._fresh.items() if v.since_s > since_s}
            self._fresh = {k: v for k, v in self._fresh.items() if k not in young}
        self._hand_over()
        if young:
            self._fresh = young
            oldest = next(iter(young.values()))
            due_s = oldest.since_s + self._group_s * BEGIN_AT
            self._group = self._loop.call_at(due_s, self._group_is_due)

    def _hand_over(self) -> None:
        """Give the group to the thread."""
        self._stop_group()
        if self._closed or not (self._fresh or self._overtaken):
            return
        fresh, self._fresh = self._fresh, {}
        overtaken, self._overtaken = self._overtaken, {}
        self._being_written |= overtaken
        self._writing |= fresh
        self._groups_under_way += 1
        for key in fresh:
            self._journal.note(Event.ACCEPTING, *key)
        writing = self._thread.submit(
            self._write_group, [each.row for each in fresh.values()], overtaken
        )
        writing.add_done_callback(
            lambda done: self._group_written(fresh, overtaken, done)
        )

    def _write_group(
        self, fresh: list[OpenRow], overtaken: dict[Key, tuple[Spill, Ended]]
    ) -> _Written:
        """In the thread: one transaction, with an fsync if anything is accepted."""
        free = free_bytes(self._path)
        with self._thread.transaction("FULL" if fresh else "NORMAL"):
            known = {
                key: self._table.find(key) for key in self._table.insert_all(fresh)
            }
            freed = {
                key: self._table.insert_ended(*each) for key, each in overtaken.items()
            }
        sizes = tuple((key, size) for key, size in freed.items() if size is not None)
        return _Written(known, sizes, free)

    def _group_written(
        self,
        fresh: dict[Key, _Fresh],
        overtaken: dict[Key, tuple[Spill, Ended]],
        done: asyncio.Future[_Written],
    ) -> None:
        self._groups_under_way -= 1
        for key in fresh:
            self._writing.pop(key, None)
        for key in overtaken:
            self._being_written.pop(key, None)
        self._after_commit()
        try:
            written = done.result()
        except Exception as error:  # noqa: BLE001 - whatever it was, a device waits
            self._refuse(fresh, error)
            self._keep_unwritten(overtaken, error)
            return
        self._room.free_bytes = written.free_bytes
        self.counters.groups += bool(fresh)
        for key, size in written.freed:
            self._room.ended(key[0], size)
        note = self._journal.note
        for key, each in fresh.items():
            told: Committed | Recorded = COMMITTED
            if key in written.known:
                self._room.give_back(key[0], len(each.spill.request))
                told = written.known[key] or COMMITTED
            else:
                note(Event.ACCEPTED, *key)
            if not each.accepted.done():
                each.accepted.set_result(told)

    def _after_commit(self) -> None:
        """What has gathered meanwhile goes at once; else there is time to tidy up."""
        if len(self._fresh) >= MANY_ROWS:
            self._hand_over()
        else:
            self._tidy_up()

    def _tidy_up(self) -> None:
        """Let the log move into the file while nobody waits for a commit."""
        if not self._fresh and not self._closed:
            self._thread.tidy_up()

    def _refuse(self, fresh: dict[Key, _Fresh], error: Exception) -> None:
        why = OutboxFull(f"the outbox could not be written: {error}")
        for key, each in fresh.items():
            self._room.give_back(key[0], len(each.spill.request))
            if not each.accepted.done():
                each.accepted.set_exception(why)

    def _keep_unwritten(
        self, overtaken: dict[Key, tuple[Spill, Ended]], error: Exception
    ) -> None:
        """Try again later to write what was told already, within a bound."""
        log.error("outbox_not_written", error=str(error), waiting=len(overtaken))
        self._count_failure()
        room = max(0, UNWRITTEN_ROWS - len(self._overtaken))
        self.counters.records_dropped += max(0, len(overtaken) - room)
        self._overtaken = {
            **self._overtaken,
            **dict(list(overtaken.items())[:room]),
        }
        if self._overtaken and self._group is None:
            self._group = self._loop.call_later(FAILURE_PAUSE_S, self._hand_over)

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
        if key in self._fresh and key in self._ended_lately:
            # Sent twice at once, and the first has its outcome: the commit finds it.
            return self._at_once(first=False)
        fresh = self._fresh.pop(key, None)
        if fresh is not None:
            self._remember_end(key)
            self._room.ended(key[0], len(fresh.spill.request))
            if not fresh.accepted.done():
                fresh.accepted.set_result(Overtaken())
            self._overtaken[key] = (fresh.spill, ended)
            self._start_group()
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
        return key in self._fresh

    async def find(self, key: Key) -> Recorded | None:
        """What is recorded of an id, if anything; waits for a commit under way.

        Raises:
            OutboxFailed: the file cannot be read now; so do all below.
        """
        fresh = self._fresh.get(key)
        if fresh is not None:
            # A crash would still undo it: to tell of it now would be a promise.
            await asyncio.wait([fresh.accepted])
        ended = self._told_unwritten(key)
        if ended is not None:
            return ended
        return await self._run(lambda: self._table.find(key))

    async def get(self, key: Key) -> Spill | None:
        """The open spill of that id."""
        if key in self._fresh:
            return self._fresh[key].spill
        return await self._run(lambda: self._table.get(key))

    async def get_all(self, keys: Sequence[Key]) -> dict[Key, Spill]:
        """Those of the keys that are open, by key; what they ask is left out."""
        found = await self._run(lambda: self._table.get_all(keys))
        for key in keys:
            fresh = self._fresh.get(key)
            if fresh is not None:
                found[key] = fresh.spill
        return found

    async def mark_told(self, keys: Sequence[Key], told_ms: float) -> None:
        """The device, or its broker, has acknowledged the answer."""
        written = []
        for key in keys:
            if key in self._overtaken:
                spill, ended = self._overtaken[key]
                stage = after_step(ended.stage, Step.TELL)
                self._overtaken[key] = (spill, replace(ended, stage=stage))
            else:
                written.append(key)
        if written:
            await self._run(lambda: self._table.mark_told(written, told_ms))

    async def reschedule(self, keys: Sequence[Key], due_ms: float) -> None:
        """Make open spills due at another time."""
        for key in keys:
            fresh = self._fresh.get(key)
            if fresh is not None:
                fresh.spill = replace(fresh.spill, due_ms=due_ms)
                fresh.row = open_row(fresh.spill)
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
        self._hand_over()
        return await self._run(lambda: self._table.expired(now_ms, limit=limit))

    async def next_deadline_ms(self) -> float | None:
        """The soonest deadline of an open spill."""
        self._hand_over()
        return await self._run(lambda: self._table.next_deadline_ms())  # noqa: PLW0108 - as above

    async def untold(self, *, limit: int = 256) -> list[tuple[Key, Channel, bytes]]:
        """Answers whose device has not acknowledged them, oldest first."""
        return await self._run(lambda: self._table.untold(limit=limit))

    async def counts(self) -> Counts:
        """Depth, age and outcomes."""
        self._hand_over()
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
            self._tidy_up()


async def enduring(loop: Callable[[], Awaitable[None]]) -> None:
    """Run an endless loop that uses the outbox; a failing disk only makes it pause."""
    while True:
        try:
            await loop()
        except OutboxFailed as error:
            log.error("outbox_failed", error=str(error), retry_in_s=FAILURE_PAUSE_S)
            await asyncio.sleep(FAILURE_PAUSE_S)


def _row(spill: Spill) -> OpenRow:
    try:
        return open_row(spill)
    except Exception as error:
        # Whatever it was, its device is told.
        raise OutboxFull(f"the outbox could not be written: {error}") from error


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
