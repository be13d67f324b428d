"""A signal ends the work once, and the work tidies up before the program ends.

A second Ctrl-C does nothing: tidying has bounds of its own, and a person who is
impatient must not be left with half of the processes.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """A signal ended the work, and all that it had started is gone.

    Attributes:
        exit_code: what a shell expects of a program that this signal ended.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"{signal.Signals(number).name} ended it")
        self.exit_code = 128 + number


def run_until_interrupted(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run `work` in an event loop of its own; SIGINT, SIGTERM and SIGHUP cancel it.

    They stay without effect afterwards: what comes then is the end of the program.

    Raises:
        Interrupted: a signal came, and the work has tidied up.
    """
    guard = _Guard(work)
    for number in SIGNALS:
        # Not the loop's own handlers: those end with the loop, and a second Ctrl-C
        # a moment later would tear the program down.
        signal.signal(number, guard.asked)
    try:
        return asyncio.run(guard.run())
    finally:
        for number in SIGNALS:
            # The interpreter, while it ends, puts handlers back that would kill it.
            signal.signal(number, signal.SIG_IGN)


class _Guard(Generic[T]):
    def __init__(self, work: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._work = work
        self._came: int | None = None
        self._cancel: Callable[[], object] | None = None

    def asked(self, number: int, _frame: FrameType | None) -> None:
        if self._came is None:
            self._came = number
            if self._cancel is not None:
                self._cancel()

    async def run(self) -> T:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.TaskGroup() as group:
                task = group.create_task(self._work())
                self._cancel = lambda: loop.call_soon_threadsafe(task.cancel)
                if self._came is not None:
                    task.cancel()
        except BaseExceptionGroup as several:
            first = several.exceptions[0]
            raise first from first.__cause__
        finally:
            self._cancel = None
        if self._came is not None:
            raise Interrupted(self._came)
        return task.result()
