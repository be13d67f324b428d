"""Waiting for what tells no event of its own, as another process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

PATIENCE_S = 60.0
"""Longer than anything takes here: only a test that fails waits so long."""


async def until(what: Callable[[], object], within_s: float = PATIENCE_S) -> None:
    """Return once `what()` holds.

    Raises:
        TimeoutError: it does not, within so many seconds.
    """
    async with asyncio.timeout(within_s):
        while not what():  # noqa: ASYNC110 - what is asked has no event
            await asyncio.sleep(0.01)
