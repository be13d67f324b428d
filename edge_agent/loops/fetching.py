"""Fetch one blob, chunk by chunk, from whichever source gives it. Nothing is believed.

A window of chunks is under way at once. A source that lies, stalls or is busy rests
and another is asked; when no chunk has come for `stall_s` the pull ends, and what
came stays on the disk.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from bundle.source import NotThere, Piece, Source, SourceUnavailable
from edge_agent.adapters.part_file import PartFile
from edge_agent.core.chunks import Chunks
from edge_agent.core.source_order import Ask, Exhausted, Rest, SourceOrder

log = structlog.get_logger(__name__)

# No source may take longer than this for one question, whatever its own deadline.
READ_S: Final = 60.0
# Chunks heard and not yet written: a wave's transfer does not wait for a slow disk.
MAX_HEARD: Final = 16
# So many chunks in a row that were asked for on the shared topic and not heard: the
# rest is asked for alone, and what is heard is still taken.
MAX_MISSES: Final = 3


class PullInterrupted(Exception):
    """The pull cannot go on now; what it has is kept, and it is tried again later.

    `retry_after_s` is when there is a point in that, or None for soon.
    """

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class Superseded(PullInterrupted):
    """Something else may be desired by now."""


class BudgetSpent(PullInterrupted):
    """The day's bytes are used up; `retry_after_s` is the rest of the day."""


class Sharing(Protocol):
    """A source whose chunks a whole wave hears, as `MqttSource`."""

    def hearing(
        self, sha256: str, heard: Callable[[int, bytes], None]
    ) -> AbstractAsyncContextManager[None]:
        """Hear the chunks of a blob that others of the wave ask for."""
        ...

    async def ask_shared(self, path: str, offset: int, length: int) -> None:
        """Ask for a chunk on the topic of its blob; raise SourceUnavailable."""
        ...


class Meter(Protocol):
    """What bytes cost, as `loops.metering.Metering`."""

    async def take(self, size: int) -> None:
        """Wait until `size` bytes may be asked for; raise BudgetSpent."""
        ...

    def give_back(self, size: int) -> None:
        """So many bytes that were taken did not come."""
        ...

    def charge(self, size: int) -> None:
        """So many bytes came that nobody had taken."""
        ...


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """How a blob is fetched.

    Attributes:
        window: chunks under way at once.
        stall_s: without a chunk for so long the pull is interrupted.
        shared_wait_s: a chunk asked for on the shared topic that is not heard within
            this is asked for alone.
    """

    window: int = 4
    stall_s: float = 120.0
    shared_wait_s: float = 2.0


class Fetch:
    """One blob on its way into its unfinished file. `run` is called once.

    Args:
        superseded: whether to leave off between two chunks.
        sharing: where to hear what the wave asks for; None: alone.
        arrived: told after each chunk that was written.
    """

    def __init__(  # noqa: PLR0913 - wiring
        self,
        chunks: Chunks,
        part: PartFile,
        *,
        sources: Sequence[Source],
        settings: FetchSettings,
        meter: Meter,
        superseded: Callable[[], bool],
        rng: random.Random,
        sharing: Sharing | None = None,
        arrived: Callable[[], None] = lambda: None,
    ) -> None:
        self._chunks = chunks
        self._part = part
        self._sources = sources
        self._order = SourceOrder([each.name for each in sources])
        self._settings = settings
        self._meter = meter
        self._superseded = superseded
        self._rng = rng
        self._sharing = sharing
        self._arrived = arrived
        self._left: deque[int] = deque()
        self._came: dict[int, asyncio.Event] = {}
        self._heard: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue(MAX_HEARD)
        self._progress_s = 0.0
        self._misses = 0

    async def run(self) -> None:
        """Fetch what the file lacks.

        Raises:
            PullInterrupted: superseded, no source gives it, or the budget is spent.
            OSError: the disk.
        """
        missing = self._part.missing()
        if not missing:
            return
        if self._sharing is not None:
            # Each agent of a wave begins elsewhere, so that they divide the work.
            self._rng.shuffle(missing)
        self._left = deque(missing)
        self._progress_s = self._now_s()
        try:
            async with AsyncExitStack() as stack:
                await self._listen(stack)
                async with asyncio.TaskGroup() as tasks:
                    keeping = tasks.create_task(self._keep_heard())
                    async with asyncio.TaskGroup() as workers:
                        for _ in range(min(self._settings.window, len(missing))):
                            workers.create_task(self._work())
                    keeping.cancel()
        except BaseExceptionGroup as group:
            raise _first(group) from None

    async def _listen(self, stack: AsyncExitStack) -> None:
        if self._sharing is None:
            return
        hearing = self._sharing.hearing(self._chunks.sha256, self._on_heard)
        try:
            await stack.enter_async_context(hearing)
        except SourceUnavailable as error:
            log.info("wave_not_heard", reason=str(error))
            self._sharing = None

    async def _work(self) -> None:
        while self._left:
            index = self._left.popleft()
            if self._part.has(index):
                continue
            if self._superseded():
                raise Superseded("the desired state may have changed")
            if self._sharing is not None and await self._share(index):
                continue
            await self._fetch(index)

    async def _fetch(self, index: int) -> None:
        offset, length = self._chunks.span(index)
        while not self._part.has(index):
            source = await self._next_source()
            await self._pay(length)
            try:
                async with asyncio.timeout(READ_S):
                    piece = await self._sources[source].read(
                        self._chunks.path, offset, length
                    )
            except NotThere as error:
                self._meter.give_back(length)
                self._order.lacks(source, reason=str(error))
            except SourceUnavailable as error:
                self._meter.give_back(length)
                self._rest(source, str(error), error.retry_after_s)
            except TimeoutError:
                self._meter.give_back(length)
                self._rest(source, f"no answer within {READ_S:g} s", None)
            else:
                await self._take(source, index, piece)

    async def _pay(self, length: int) -> None:
        began_s = self._now_s()
        await self._meter.take(length)
        # What the rate makes us wait for is nobody's silence.
        now_s = self._now_s()
        self._progress_s = min(now_s, self._progress_s + (now_s - began_s))

    async def _take(self, source: int, index: int, piece: Piece) -> None:
        if piece.total_bytes != self._chunks.size_bytes:
            why = (
                f"says that {self._chunks.path} has {piece.total_bytes} bytes, "
                f"sealed were {self._chunks.size_bytes}"
            )
        elif await self._keep(index, piece.data):
            self._order.worked(source)
            return
        else:
            why = f"gave something else than chunk {index} of {self._chunks.path}"
        log.warning("source_lied", source=self._sources[source].name, reason=why)
        self._order.lied(source, self._now_s(), reason=why, chance=self._rng.random())

    async def _keep(self, index: int, data: bytes) -> bool:
        kept = await asyncio.to_thread(self._part.put, index, data)
        if kept:
            self._progress_s = self._now_s()
            if (event := self._came.get(index)) is not None:
                event.set()
            self._arrived()
        return kept

    def _rest(self, source: int, reason: str, retry_after_s: float | None) -> None:
        log.info("source_rests", source=self._sources[source].name, reason=reason)
        self._order.failed(
            source,
            self._now_s(),
            reason=reason,
            retry_after_s=retry_after_s,
            chance=self._rng.random(),
        )

    async def _next_source(self) -> int:
        while True:
            now_s = self._now_s()
            silent_s = now_s - self._progress_s
            if silent_s > self._settings.stall_s:
                raise PullInterrupted(
                    f"no chunk came for {silent_s:.0f} s ({self._order.why()})"
                )
            match self._order.next(now_s):
                case Ask(index):
                    return index
                case Rest(until_s):
                    if self._superseded():
                        raise Superseded("the desired state may have changed")
                    await asyncio.sleep(min(until_s - now_s, 1.0))
                case Exhausted(reason):
                    raise PullInterrupted(
                        f"no source has {self._chunks.path} ({reason})"
                    )

    # --- what the wave hears ------------------------------------------------------

    async def _share(self, index: int) -> bool:
        """Ask on the shared topic and listen for a while; whether the chunk came."""
        if self._sharing is None or self._misses >= MAX_MISSES:
            return False
        offset, length = self._chunks.span(index)
        await self._pay(length)
        event = self._came[index] = asyncio.Event()
        try:
            async with asyncio.timeout(self._settings.shared_wait_s):
                await self._sharing.ask_shared(self._chunks.path, offset, length)
                await event.wait()
        except (TimeoutError, SourceUnavailable):
            pass
        finally:
            # Paid for when it is heard, or when it is asked for alone.
            self._meter.give_back(length)
            del self._came[index]
        self._misses = 0 if self._part.has(index) else self._misses + 1
        return self._part.has(index)

    def _on_heard(self, offset: int, data: bytes) -> None:
        index = self._chunks.index_at(offset)
        if index is None or self._part.has(index) or self._heard.full():
            return  # It is asked for alone.
        self._heard.put_nowait((index, data))

    async def _keep_heard(self) -> None:
        while True:
            index, data = await self._heard.get()
            if self._part.has(index):
                continue
            self._meter.charge(len(data))
            if not await self._keep(index, data):
                log.warning("shared_chunk_refused", path=self._chunks.path, index=index)

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that ended a group of tasks, out of however many groups."""
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
