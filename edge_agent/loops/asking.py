"""Ask whichever source can answer; rest those that fail; end when none did for long."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from bundle.source import NotThere, Piece, Source, SourceUnavailable
from edge_agent.core.source_order import Ask, Exhausted, Rest, SourceOrder

log = structlog.get_logger(__name__)

# No source may take longer than this for one question, whatever its own deadline.
READ_S: Final = 60.0
LOOK_AGAIN_S: Final = 1.0


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


class NoSource(PullInterrupted):
    """Every source lacks the file, or has lied about it."""


class Asking:
    """The sources while one file is fetched.

    Args:
        stall_s: without progress for so long it is given up.
        superseded: whether to leave off.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        stall_s: float,
        superseded: Callable[[], bool],
        rng: random.Random,
    ) -> None:
        self._sources = sources
        self._order = SourceOrder([each.name for each in sources])
        self._stall_s = stall_s
        self._superseded = superseded
        self._rng = rng
        self._progress_s = asyncio.get_running_loop().time()

    def check_wanted(self) -> None:
        """Return if this is still wanted.

        Raises:
            Superseded: it may not be.
        """
        if self._superseded():
            raise Superseded("the desired state may have changed")

    def progressed(self) -> None:
        """Something came."""
        self._progress_s = self._now_s()

    def held_back(self, waited_s: float) -> None:
        """So long nobody was asked, because of the rate: that is nobody's silence."""
        self._progress_s = min(self._now_s(), self._progress_s + waited_s)

    async def next(self) -> int:
        """The source to ask now, once there is one.

        Raises:
            PullInterrupted: superseded, none is left, or none gave anything for long.
        """
        while True:
            now_s = self._now_s()
            silent_s = now_s - self._progress_s
            if silent_s > self._stall_s:
                raise PullInterrupted(
                    f"nothing came for {silent_s:.0f} s ({self._order.why()})"
                )
            match self._order.next(now_s):
                case Ask(index):
                    return index
                case Rest(until_s):
                    self.check_wanted()
                    await asyncio.sleep(min(until_s - now_s, LOOK_AGAIN_S))
                case Exhausted(reason):
                    raise NoSource(f"no source gives it ({reason})")

    async def read(
        self, source: int, path: str, offset: int, length: int
    ) -> Piece | None:
        """What that source says; None if it could not, and rests."""
        try:
            async with asyncio.timeout(READ_S):
                return await self._sources[source].read(path, offset, length)
        except NotThere as error:
            self._order.lacks(source, reason=str(error))
        except SourceUnavailable as error:
            self._rests(source, str(error), error.retry_after_s)
        except TimeoutError:
            self._rests(source, f"no answer within {READ_S:g} s", None)
        return None

    def worked(self, source: int) -> None:
        """It gave what was asked for."""
        self._order.worked(source)
        self.progressed()

    def lied(self, source: int, reason: str) -> None:
        """It gave something else."""
        log.warning("source_lied", source=self._sources[source].name, reason=reason)
        self._order.lied(
            source, self._now_s(), reason=reason, chance=self._rng.random()
        )

    def _rests(self, source: int, reason: str, retry_after_s: float | None) -> None:
        log.info("source_rests", source=self._sources[source].name, reason=reason)
        self._order.failed(
            source,
            self._now_s(),
            reason=reason,
            retry_after_s=retry_after_s,
            chance=self._rng.random(),
        )

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()


async def read_small(asking: Asking, path: str, max_bytes: int) -> bytes | None:
    """All of a small file; None when no source has it.

    Raises:
        PullInterrupted: superseded, or nothing came for long.
    """
    while True:
        try:
            source = await asking.next()
        except NoSource:
            return None
        piece = await asking.read(source, path, 0, max_bytes)
        if piece is None:
            continue
        if piece.total_bytes == len(piece.data) <= max_bytes:
            asking.worked(source)
            return piece.data
        asking.lied(source, f"{path} of {piece.total_bytes} bytes is none")
