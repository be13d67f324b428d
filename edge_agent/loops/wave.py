"""Hear one blob with all others of a wave; `core.wave` says when to ask for what."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import structlog

from bundle.source import SourceUnavailable
from edge_agent.core.chunks import Chunks
from edge_agent.core.wave import AskWave, Leave, Listen, WaveTurns
from edge_agent.loops.asking import LOOK_AGAIN_S
from edge_agent.loops.metering import Meter

log = structlog.get_logger(__name__)


class Sharing(Protocol):
    """A source whose chunks a whole wave hears, as `MqttSource`."""

    def hearing(
        self, sha256: str, heard: Callable[[int, bytes], None]
    ) -> AbstractAsyncContextManager[None]:
        """Hear the chunks of a blob that others of the wave ask for."""
        ...

    async def ask_shared(
        self, path: str, offset: int, length: int, listening_s: float
    ) -> None:
        """Ask for a chunk on the topic of its blob; raise SourceUnavailable."""
        ...


@dataclass(frozen=True, slots=True)
class WaveSettings:
    """How a wave is heard.

    Attributes:
        window: chunks asked for at once.
        first_s: the wave gathers for so long; each agent asks first within it.
        silent_s: without a chunk for so long, or up to twice that, an agent asks.
    """

    window: int
    first_s: float
    silent_s: float


class Wave:
    """One agent's part in it. Made when the topic is heard, inside the event loop.

    Args:
        missing: the chunks it lacks.
        meter: what is asked for must be within the day's budget.
        check_wanted: raises when the blob is wanted no more.
    """

    def __init__(  # noqa: PLR0913 - what a fetch has, by name
        self,
        chunks: Chunks,
        missing: Sequence[int],
        sharing: Sharing,
        settings: WaveSettings,
        *,
        meter: Meter,
        check_wanted: Callable[[], None],
        rng: random.Random,
    ) -> None:
        self._chunks = chunks
        self._sharing = sharing
        self._meter = meter
        self._check_wanted = check_wanted
        self._rng = rng
        self._came = asyncio.Event()
        self._since_s = _now_s()
        order = rng.sample(missing, len(missing))
        self._turns = WaveTurns(
            order,
            window=settings.window,
            first_s=settings.first_s,
            silent_s=settings.silent_s,
            now_s=_now_s(),
            chance=rng.random(),
        )

    def kept(self, index: int) -> None:
        """A chunk is here."""
        self._turns.heard(index, _now_s(), self._rng.random())
        self._came.set()

    async def run(self) -> None:
        """Listen, and ask when it is this agent's turn, while there is a point in it.

        Raises:
            PullInterrupted: superseded, or the budget is spent.
        """
        while True:
            self._came.clear()
            self._check_wanted()
            match self._turns.next(_now_s(), self._rng.random()):
                case AskWave(indices):
                    if not await self._ask(indices):
                        return
                case Listen(until_s):
                    await self._hear(until_s)
                case Leave():
                    return

    async def _ask(self, indices: Sequence[int]) -> bool:
        for index in indices:
            offset, length = self._chunks.span(index)
            # Paid for when it is heard.
            await self._meter.take(length)
            self._meter.give_back(length)
            try:
                await self._sharing.ask_shared(
                    self._chunks.path, offset, length, _now_s() - self._since_s
                )
            except SourceUnavailable as error:
                log.info("wave_not_asked", reason=str(error))
                return False
        return True

    async def _hear(self, until_s: float) -> None:
        # Something else may be desired before anything is heard.
        until_s = min(until_s, _now_s() + LOOK_AGAIN_S)
        try:
            async with asyncio.timeout_at(until_s):
                await self._came.wait()
        except TimeoutError:
            pass


def _now_s() -> float:
    return asyncio.get_running_loop().time()
