"""The one thread that has the outbox's file: opened late, mended on the way, closed last."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar

import structlog

from edge_agent.adapters.spill_file import (
    OutboxFailed,
    OutboxUnusable,
    is_damage,
    open_table,
)
from edge_agent.adapters.spill_table import SpillTable
from edge_agent.core.quotas import Held

log = structlog.get_logger(__name__)

T = TypeVar("T")


class SpillThread:
    """Runs work on the table, one piece after the other.

    Args:
        path: the file; its folder exists.
        before_use: called in the thread with what each device has waiting, once the
            file is open and before anything else can use it.
    """

    def __init__(
        self, path: Path, before_use: Callable[[Mapping[str, Held]], None]
    ) -> None:
        self._path = path
        self._before_use = before_use
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="outbox")
        self._under_way: set[asyncio.Future[object]] = set()
        self._opened: SpillTable | None = None
        self._why_closed = "it has not been opened yet"
        self._damage: str | None = None
        self._tidying = False

    @property
    def error(self) -> str | None:
        """Why the file is not open; None when it is."""
        return self._why_closed if self._opened is None else None

    @property
    def unopened(self) -> bool:
        """Whether `open` has to be tried: it is no file that is about to be mended."""
        return self._opened is None and self._damage is None

    @property
    def table(self) -> SpillTable:
        """In the thread: the file.

        Raises:
            sqlite3.OperationalError: it is not open.
        """
        if self._opened is None:
            raise sqlite3.OperationalError(self._why_closed)
        return self._opened

    async def open(self) -> None:
        """Open the file.

        Raises:
            OutboxUnusable, OutboxFailed: as `open_table`.
        """
        try:
            await self.submit(self._open)
        except (OutboxFailed, OutboxUnusable) as error:
            self._why_closed = str(error)
            raise

    async def run(self, work: Callable[[], T]) -> T:
        """Do it in a transaction that a killed process may undo.

        Raises:
            OutboxFailed: the file cannot be read or written now.
        """

        def transacted() -> T:
            with self.transaction("NORMAL"):
                return work()

        try:
            return await self.submit(transacted)
        except sqlite3.Error as error:
            raise _failed(self._path, error) from error

    def submit(self, work: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
        """Do it after all that was submitted before; `close` waits for it."""
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._thread, work, *arguments)
        tracked: asyncio.Future[object] = future  # type: ignore[assignment] # only awaited
        self._under_way.add(tracked)
        tracked.add_done_callback(self._under_way.discard)
        return future

    @contextlib.contextmanager
    def transaction(self, synchronous: Literal["FULL", "NORMAL"]) -> Iterator[None]:
        """In the thread: a transaction, in a file that is mended first if it must be."""
        if self._damage is not None:
            self._mend(self._damage)
        try:
            with self.table.transaction(synchronous):
                yield
        except sqlite3.Error as error:
            if is_damage(error):
                self._damage = str(error)
            raise

    def tidy_up(self) -> None:
        """Let the log move into the file, if it is time; for when nobody waits."""
        table = self._opened
        if table is None or self._tidying or not table.log.checkpoint_due:
            return
        self._tidying = True
        self.submit(table.log.checkpoint).add_done_callback(self._tidied)

    async def until_idle(self) -> None:
        """Return once all that was submitted is done, and what came of it."""
        while self._under_way:
            await asyncio.wait(self._under_way)

    async def close(self) -> None:
        """Close the file, and end."""
        if self._opened is not None:
            await self.submit(self._opened.close)
        self._thread.shutdown()

    def _open(self) -> None:
        """In the thread: open the file, and count what waits in it.

        Raises:
            OutboxUnusable, OutboxFailed: as `open_table`.
        """
        table = open_table(self._path)
        try:
            held = _held(table)
        except sqlite3.DatabaseError as error:
            table.leave()
            if not is_damage(error):
                raise _failed(self._path, error) from error
            # The look at its pages had not found it.
            table = open_table(self._path, str(error))
            try:
                held = _held(table)
            except sqlite3.Error as again:
                table.close()
                raise _failed(self._path, again) from again
        self._before_use(held)
        self._opened = table

    def _mend(self, damage: str) -> None:
        """Go on with a new file, and what can be read of the old one.

        What could not be read keeps its place in the quotas until the next start.
        """
        table, self._opened = self._opened, None
        if table is not None:
            table.leave()
        try:
            self._opened = open_table(self._path, damage)
        except (OutboxFailed, OutboxUnusable) as error:
            self._why_closed = str(error)
            raise sqlite3.OperationalError(str(error)) from error
        self._damage = None

    def _tidied(self, _: object) -> None:
        self._tidying = False


def _failed(path: Path, error: sqlite3.Error) -> OutboxFailed:
    return OutboxFailed(f"the outbox {path} failed: {error}")


def _held(table: SpillTable) -> dict[str, Held]:
    """What each device has waiting."""
    with table.transaction("NORMAL"):
        return table.held()
