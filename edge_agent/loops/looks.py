"""When to look for updates: at a poll, when told to, soon after something was put off."""

from __future__ import annotations

import asyncio
import random
from typing import Final

RETRY_S: Final = 5.0


class Looks:
    """The moments to look.

    Args:
        poll_every_s: between two looks, give or take a fifth.
        spread_s: after an outage all agents look within so long, not at once.
        rng: draws the moments.
    """

    def __init__(
        self, *, poll_every_s: float, spread_s: float, rng: random.Random
    ) -> None:
        self._poll_every_s = poll_every_s
        self._spread_s = spread_s
        self._rng = rng
        self._look = asyncio.Event()
        self._again: asyncio.TimerHandle | None = None

    def now(self) -> None:
        """Something may have changed."""
        self._look.set()

    def within_spread(self) -> None:
        """The pool can be asked again; a thousand agents do not do so at once."""
        delay_s = self._rng.uniform(0.0, self._spread_s)
        asyncio.get_running_loop().call_later(delay_s, self._look.set)

    def soon(self, error: BaseException) -> None:
        """What failed may go another time: whoever failed it may say when."""
        asked_s = getattr(error, "retry_after_s", None) or RETRY_S
        # Other models may be desired before a budget is full again.
        wait_s = min(self._poll_every_s, max(RETRY_S, asked_s))
        loop = asyncio.get_running_loop()
        at_s = loop.time() + wait_s * self._rng.uniform(0.8, 1.2)
        if self._again is not None:
            at_s = min(at_s, self._again.when())
        self.forget_timer()
        self._again = loop.call_at(at_s, self._look.set)

    async def next(self) -> None:
        """Wait for the next moment."""
        every_s = self._poll_every_s * self._rng.uniform(0.8, 1.2)
        try:
            async with asyncio.timeout(every_s):
                await self._look.wait()
        except TimeoutError:
            pass
        self._look.clear()
        # Whoever waits for the next look has begun to already.
        self.forget_timer()

    def forget_timer(self) -> None:
        """Nobody will look any more."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
