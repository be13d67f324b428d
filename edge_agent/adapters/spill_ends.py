"""Outcomes of accepted spills: those that come meanwhile are committed together."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog

from edge_agent.adapters.spill_rows import Ended
from edge_agent.adapters.spill_thread import SpillThread

log = structlog.get_logger(__name__)

AGAIN_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Waiting:
    """An outcome that waits to be committed before it is told."""

    ended: Ended
    first: asyncio.Future[bool]


class Ends:
    """Records outcomes, and tries for ever: nobody is told one that is not recorded.

    Args:
        thread: has the file.
        on_first: called with each that was the first of its spill, and the bytes that
            it frees.
        on_failure: called when the disk has refused a commit.
        on_commit: called after each commit.
    """

    def __init__(
        self,
        thread: SpillThread,
        *,
        on_first: Callable[[Ended, int], None],
        on_failure: Callable[[], None],
        on_commit: Callable[[], None],
    ) -> None:
        self._thread = thread
        self._on_first = on_first
        self._on_failure = on_failure
        self._on_commit = on_commit
        self._waiting: list[_Waiting] = []
        self._under_way = False
        self._closed = False

    @property
    def waiting(self) -> int:
        """How many are in no commit yet."""
        return len(self._waiting)

    def add(self, ended: Ended) -> asyncio.Future[bool]:
        """Record one; gives, once it is committed, whether it is the first."""
        loop = asyncio.get_running_loop()
        first: asyncio.Future[bool] = loop.create_future()
        self._waiting.append(_Waiting(ended, first))
        if not self._under_way:
            self._under_way = True
            loop.call_soon(self.commit)
        return first

    def commit(self) -> None:
        """Commit what has ended since the last such commit, all at once."""
        group, self._waiting = self._waiting, []
        if self._closed or not group:
            self._under_way = False
            return
        self._under_way = True
        ending = self._thread.submit(self._end, [each.ended for each in group])
        ending.add_done_callback(lambda done: self._committed(group, done))

    def close(self) -> None:
        """Commit nothing any more."""
        self._closed = True

    def _end(self, group: list[Ended]) -> list[int | None]:
        with self._thread.transaction("NORMAL"):
            return [self._thread.table.end(each) for each in group]

    def _committed(
        self, group: list[_Waiting], done: asyncio.Future[list[int | None]]
    ) -> None:
        try:
            freed = done.result()
        except sqlite3.Error as error:
            # The outcome is known and must be recorded before anybody is told.
            log.error("outcome_not_recorded", error=str(error), waiting=len(group))
            self._on_failure()
            self._waiting = group + self._waiting
            asyncio.get_running_loop().call_later(AGAIN_S, self.commit)
            return
        for each, size in zip(group, freed, strict=True):
            if size is not None:
                self._on_first(each.ended, size)
            if not each.first.done():
                each.first.set_result(size is not None)
        self.commit()
        self._on_commit()
