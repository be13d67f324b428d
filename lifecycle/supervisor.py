"""Keep endless loops running: one that fails is reported, counted and started again.

A failure costs its own loop a pause and the others nothing. Nothing but the end of the
`async with` block ends a loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol, Self, TypeAlias

import structlog

from lifecycle.clock import Clock, SystemClock

log = structlog.get_logger(__name__)

STEADY_S: Final = 30.0
# Longer than a loop takes to close what it has opened.
CANCEL_AGAIN_S: Final = 5.0

Loop: TypeAlias = Callable[[], Awaitable[None]]


class Pauses(Protocol):
    """How long to wait before a loop is started again, as `broker.backoff.Backoff`."""

    def next_s(self) -> float:
        """Seconds to wait before the next try."""
        ...

    def reset(self) -> None:
        """The loop has run for a while: begin with short waits again."""
        ...


class Supervisor:
    """Runs named loops while its block lasts.

    Args:
        pauses: makes the waits of one loop; with jitter, so that what failed together
            does not come back together.
        clock: tells how long a loop has run.
        steady_s: a loop that ran for so long starts again with short waits.

    Attributes:
        last_error: the latest failure, in one line; None while there was none.
    """

    def __init__(
        self,
        pauses: Callable[[], Pauses],
        *,
        clock: Clock | None = None,
        steady_s: float = STEADY_S,
    ) -> None:
        self._pauses = pauses
        self._clock = clock or SystemClock()
        self._steady_s = steady_s
        self._group = asyncio.TaskGroup()
        self._tasks: list[asyncio.Task[None]] = []
        self._failures: dict[str, int] = {}
        self.last_error: str | None = None

    @property
    def failures(self) -> Mapping[str, int]:
        """How often each loop has failed since the start; 0 for one that never did."""
        return self._failures

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await self._group.__aexit__(None, None, None)

    def start(self, name: str, loop: Loop) -> None:
        """Run `loop` from now on.

        Raises:
            ValueError: a loop of that name runs already.
        """
        if name in self._failures:
            raise ValueError(f"a loop named {name!r} runs already")
        self._failures[name] = 0
        self._tasks.append(self._group.create_task(self._keep(name, loop), name=name))

    async def _keep(self, name: str, loop: Loop) -> None:
        pauses = self._pauses()
        while True:
            began_s = self._clock.monotonic()
            error = await self._run(name, loop)
            if self._clock.monotonic() - began_s >= self._steady_s:
                pauses.reset()
            wait_s = pauses.next_s()
            self._failures[name] += 1
            self.last_error = f"{name}: {_in_one_line(error)}"
            log.error(
                "loop_failed",
                loop=name,
                failures=self._failures[name],
                restart_in_s=round(wait_s, 2),
                exc_info=error,
            )
            await asyncio.sleep(wait_s)

    async def _run(self, name: str, loop: Loop) -> BaseException:
        """What ended the loop, other than the cancellation of this task.

        Each run is a task of its own: until Python 3.13 a task that has left a failed
        `TaskGroup` may count as cancelled for good, though nobody has cancelled it.
        """
        run = self._group.create_task(_failure(loop), name=name)
        try:
            await asyncio.wait((run,))
        except asyncio.CancelledError:
            await _end(run)
            raise
        # A library may raise a cancellation that nobody has asked for.
        return asyncio.CancelledError() if run.cancelled() else run.result()


class LoopReturned(Exception):
    """An endless loop came to an end without an error."""


async def _failure(loop: Loop) -> Exception:
    try:
        await loop()
    except Exception as error:  # noqa: BLE001 - logged with its traceback and counted
        return error
    return LoopReturned("it returned, and should run for ever")


async def _end(task: asyncio.Task[Exception]) -> None:
    """Cancel a task for certain: a library may swallow a cancellation."""
    while not task.done():
        task.cancel()
        await asyncio.wait((task,), timeout=CANCEL_AGAIN_S)


def _in_one_line(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    text = str(error).splitlines()
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__
