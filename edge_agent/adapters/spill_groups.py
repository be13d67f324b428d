"""Fresh spills, committed in groups: rows wait a little for others, and share one fsync.

A spill that ends while it waits is overtaken: it is written all the same, already
ended, so that a resent id hears the same again.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias

import structlog

from edge_agent.adapters.spill_room import OutboxFull, Room, free_bytes
from edge_agent.adapters.spill_rows import Ended, OpenRow, Recorded, open_row
from edge_agent.adapters.spill_thread import SpillThread
from edge_agent.core.delivery import Key, Spill, Step, after_step
from lifecycle.journal import Event, Journal

log = structlog.get_logger(__name__)

AGAIN_S: Final = 1.0
GROUP_ROWS: Final = 256
MANY_ROWS: Final = 64
BUSY_ROWS: Final = 32
# A timer comes up to a millisecond late, and a thread must wake: begin a little before
# the window ends, so that it holds.
BEGIN_AT: Final = 0.85
UNWRITTEN_ROWS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Committed:
    """The row is on the disk."""


@dataclass(frozen=True, slots=True)
class Overtaken:
    """The spill ended before its row was committed."""


COMMITTED: Final = Committed()

Accepted: TypeAlias = asyncio.Future[Committed | Overtaken | Recorded]


@dataclass(slots=True)
class Fresh:
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


class Groups:
    """What is taken in and not yet on the disk.

    Args:
        thread: has the file.
        path: of the file.
        room: what each spill takes its place in.
        group_s: seconds that the first of a group waits for others.
        journal: told before and after each commit.
        counters: of the outbox.
    """

    def __init__(
        self,
        thread: SpillThread,
        path: Path,
        *,
        room: Room,
        group_s: float,
        journal: Journal,
        counters: OutboxCounters,
    ) -> None:
        self._thread = thread
        self._path = path
        self._room = room
        self._group_s = group_s
        self._journal = journal
        self._counters = counters
        self._loop = asyncio.get_running_loop()
        self._fresh: dict[Key, Fresh] = {}
        self._writing: dict[Key, Fresh] = {}
        self._overtaken: dict[Key, tuple[Spill, Ended]] = {}
        self._being_written: dict[Key, tuple[Spill, Ended]] = {}
        self._group: asyncio.Handle | None = None
        self._groups_under_way = 0
        self._closed = False

    def add(self, spill: Spill, accepted: Accepted) -> None:
        """Take a row for the next commit.

        Args:
            spill: for which there is room.
            accepted: told what becomes of it.

        Raises:
            OutboxFull: it cannot be written.
        """
        row = _row(spill)
        self._room.take(spill.device, len(spill.request))
        self._fresh[spill.key] = Fresh(spill, row, accepted, self._loop.time())
        waiting = len(self._fresh)
        if waiting < MANY_ROWS:
            self._start_group()
        elif waiting == MANY_ROWS and not self._groups_under_way:
            # Company enough; who comes meanwhile shares the next commit.
            self.hand_over()
        elif waiting >= GROUP_ROWS:
            self.hand_over()

    def fresh(self, key: Key) -> Fresh | None:
        """A row that waits for its group; none that is being written."""
        return self._fresh.get(key)

    def unaccepted(self, key: Key) -> Fresh | None:
        """A row that waits or is being written."""
        return self._fresh.get(key) or self._writing.get(key)

    def told(self, key: Key) -> Recorded | None:
        """What is known of a spill that ended before its row was written."""
        found = self._overtaken.get(key) or self._being_written.get(key)
        if found is None:
            return None
        spill, ended = found
        return Recorded(ended.stage, spill.encoding, ended.outcome, ended.answer)

    def overtake(self, ended: Ended) -> bool:
        """End a row that waits for its group; False when none does."""
        key = ended.key
        fresh = self._fresh.pop(key, None)
        if fresh is None:
            return False
        self._room.ended(key[0], len(fresh.spill.request))
        if not fresh.accepted.done():
            fresh.accepted.set_result(Overtaken())
        self._overtaken[key] = (fresh.spill, ended)
        self._start_group()
        return True

    def tell(self, key: Key) -> bool:
        """Note that an overtaken spill was told; False when its row is written."""
        if key not in self._overtaken:
            return False
        spill, ended = self._overtaken[key]
        stage = after_step(ended.stage, Step.TELL)
        self._overtaken[key] = (spill, replace(ended, stage=stage))
        return True

    def reschedule(self, key: Key, due_ms: float) -> None:
        """Make a row that waits due at another time, if one does."""
        fresh = self._fresh.get(key)
        if fresh is not None:
            fresh.spill = replace(fresh.spill, due_ms=due_ms)
            fresh.row = open_row(fresh.spill)

    def close(self) -> None:
        """Commit nothing any more."""
        self._closed = True

    def hand_over(self) -> None:
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

    def tidy_up(self) -> None:
        """Let the log move into the file while nobody waits for a commit."""
        if not self._fresh and not self._closed:
            self._thread.tidy_up()

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
        young: dict[Key, Fresh] = {}
        if len(self._fresh) < BUSY_ROWS:
            since_s = self._loop.time() - self._group_s / 2
            young = {k: v for k, v in self._fresh.items() if v.since_s > since_s}
            self._fresh = {k: v for k, v in self._fresh.items() if k not in young}
        self.hand_over()
        if young:
            self._fresh = young
            oldest = next(iter(young.values()))
            due_s = oldest.since_s + self._group_s * BEGIN_AT
            self._group = self._loop.call_at(due_s, self._group_is_due)

    def _write_group(
        self, fresh: list[OpenRow], overtaken: dict[Key, tuple[Spill, Ended]]
    ) -> _Written:
        """In the thread: one transaction, with an fsync if anything is accepted."""
        free = free_bytes(self._path)
        with self._thread.transaction("FULL" if fresh else "NORMAL"):
            known = {
                key: self._thread.table.find(key)
                for key in self._thread.table.insert_all(fresh)
            }
            freed = {
                key: self._thread.table.insert_ended(*each)
                for key, each in overtaken.items()
            }
        sizes = tuple((key, size) for key, size in freed.items() if size is not None)
        return _Written(known, sizes, free)

    def _group_written(
        self,
        fresh: dict[Key, Fresh],
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
        self._counters.groups += bool(fresh)
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
            self.hand_over()
        else:
            self.tidy_up()

    def _refuse(self, fresh: dict[Key, Fresh], error: Exception) -> None:
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
        self._counters.write_failures += 1
        room = max(0, UNWRITTEN_ROWS - len(self._overtaken))
        self._counters.records_dropped += max(0, len(overtaken) - room)
        self._overtaken = {
            **self._overtaken,
            **dict(list(overtaken.items())[:room]),
        }
        if self._overtaken and self._group is None:
            self._group = self._loop.call_later(AGAIN_S, self.hand_over)


def _row(spill: Spill) -> OpenRow:
    try:
        return open_row(spill)
    except Exception as error:
        # Whatever it was, its device is told.
        raise OutboxFull(f"the outbox could not be written: {error}") from error
