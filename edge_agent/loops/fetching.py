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
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

import structlog

from bundle.source import Piece, Source, SourceUnavailable
from edge_agent.adapters.part_file import PartFile
from edge_agent.core.chunks import Chunks
from edge_agent.loops.asking import Asking
from edge_agent.loops.metering import Meter
from edge_agent.loops.wave import Sharing, Wave, WaveSettings

log = structlog.get_logger(__name__)

# Chunks heard and not yet written: a wave's transfer does not wait for a slow disk.
MAX_HEARD: Final = 16


@dataclass(frozen=True, slots=True)
class FetchSettings:
    """How a blob is fetched.

    Attributes:
        window: chunks under way at once.
        stall_s: without a chunk for so long the pull is interrupted.
        shared_first_s: a wave that shares its chunks gathers for so long, or up to
            twice that: a broker takes its time to subscribe a thousand agents.
        shared_silent_s: without a chunk for so long, or up to twice that, another agent
            of it asks; when that is of no use, alone.
    """

    window: int = 4
    stall_s: float = 120.0
    shared_first_s: float = 5.0
    shared_silent_s: float = 1.5


@dataclass(frozen=True, slots=True, eq=False)
class Means:
    """What one pull is made with.

    Attributes:
        sources: whom to ask, the preferred first.
        superseded: whether to leave off between two chunks.
        sharing: where to hear what the wave asks for; None: alone.
    """

    sources: Sequence[Source]
    settings: FetchSettings
    meter: Meter
    superseded: Callable[[], bool]
    rng: random.Random
    sharing: Sharing | None = None

    def asking(self) -> Asking:
        """The sources, before anything is known of them."""
        return Asking(
            self.sources,
            stall_s=self.settings.stall_s,
            superseded=self.superseded,
            rng=self.rng,
        )


class Fetch:
    """One blob on its way into its unfinished file. `run` is called once.

    Args:
        arrived: told after each chunk that was written.
    """

    def __init__(
        self,
        chunks: Chunks,
        part: PartFile,
        means: Means,
        *,
        arrived: Callable[[], None] = lambda: None,
    ) -> None:
        self._chunks = chunks
        self._part = part
        self._asking = means.asking()
        self._settings = means.settings
        self._meter = means.meter
        self._rng = means.rng
        self._sharing = means.sharing
        self._arrived = arrived
        self._left: deque[int] = deque()
        self._heard: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue(MAX_HEARD)
        self._wave: Wave | None = None

    async def run(self) -> None:
        """Fetch what the file lacks.

        Raises:
            PullInterrupted: superseded, no source gives it, or the budget is spent.
            OSError: the disk.
        """
        missing = self._part.missing()
        if not missing:
            return
        self._left = deque(missing)
        try:
            async with AsyncExitStack() as stack:
                await self._listen(stack, missing)
                async with asyncio.TaskGroup() as tasks:
                    keeping = tasks.create_task(self._keep_heard())
                    if self._wave is not None:
                        await self._wave.run()
                        # However quiet it was: no source has been silent yet.
                        self._asking.progressed()
                    async with asyncio.TaskGroup() as workers:
                        for _ in range(min(self._settings.window, len(missing))):
                            workers.create_task(self._work())
                    keeping.cancel()
        except BaseExceptionGroup as group:
            raise _first(group) from None

    async def _listen(self, stack: AsyncExitStack, missing: Sequence[int]) -> None:
        if self._sharing is None:
            return
        hearing = self._sharing.hearing(self._chunks.sha256, self._on_heard)
        try:
            await stack.enter_async_context(hearing)
        except SourceUnavailable as error:
            log.info("wave_not_heard", reason=str(error))
        else:
            # Only now: what it asks for it must hear.
            self._wave = self._wave_of(missing, self._sharing)

    def _wave_of(self, missing: Sequence[int], sharing: Sharing) -> Wave:
        settings = self._settings
        return Wave(
            self._chunks,
            missing,
            sharing,
            WaveSettings(
                window=settings.window,
                first_s=settings.shared_first_s,
                silent_s=settings.shared_silent_s,
            ),
            meter=self._meter,
            check_wanted=self._asking.check_wanted,
            rng=self._rng,
        )

    async def _work(self) -> None:
        while self._left:
            index = self._left.popleft()
            if self._part.has(index):
                continue
            self._asking.check_wanted()
            await self._fetch(index)

    async def _fetch(self, index: int) -> None:
        offset, length = self._chunks.span(index)
        while not self._part.has(index):
            source = await self._asking.next()
            await self._pay(length)
            piece = await self._asking.read(source, self._chunks.path, offset, length)
            if piece is None:
                self._meter.give_back(length)
            else:
                await self._take(source, index, piece)

    async def _pay(self, length: int) -> None:
        began_s = self._now_s()
        await self._meter.take(length)
        self._asking.held_back(self._now_s() - began_s)

    async def _take(self, source: int, index: int, piece: Piece) -> None:
        path, size_bytes = self._chunks.path, self._chunks.size_bytes
        if piece.total_bytes != size_bytes:
            why = f"says that {path} has {piece.total_bytes} bytes, not {size_bytes}"
            self._asking.lied(source, why)
        elif await self._keep(index, piece.data):
            self._asking.worked(source)
        else:
            self._asking.lied(
                source, f"gave something else than chunk {index} of {path}"
            )

    async def _keep(self, index: int, data: bytes) -> bool:
        kept = await asyncio.to_thread(self._part.put, index, data)
        if kept:
            self._asking.progressed()
            if self._wave is not None:
                self._wave.kept(index)
            self._arrived()
        return kept

    # --- what the wave hears ------------------------------------------------------

    def _on_heard(self, offset: int, data: bytes) -> None:
        self._meter.charge(len(data))
        index = self._chunks.index_at(offset)
        if index is None or self._part.has(index) or self._heard.full():
            return  # It is asked for alone.
        self._heard.put_nowait((index, data))

    async def _keep_heard(self) -> None:
        while True:
            index, data = await self._heard.get()
            if not self._part.has(index) and not await self._keep(index, data):
                log.warning("shared_chunk_refused", path=self._chunks.path, index=index)
            if self._heard.empty():
                await self._check_day()

    async def _check_day(self) -> None:
        """Return if what is missing may still come today: others' chunks cost too.

        Raises:
            BudgetSpent: it may not.
        """
        while self._left and self._part.has(self._left[0]):
            self._left.popleft()
        if self._left:
            _, length = self._chunks.span(self._left[0])
            await self._meter.take(length)
            self._meter.give_back(length)

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that ended a group of tasks, out of however many groups."""
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
