"""Blocking calls in threads of their own, a few at once.

A call that nobody waits for any more still has its thread: looking up a name blocks for
as long as the resolver likes. In the loop's own pool of threads a few of these would
stop all that the agent does there, its disk included; here they stop nobody else. They
hold up the end of the process no more than they hold up the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


class OwnThreads:
    """At most so many calls at once, those that were given up included.

    Args:
        most: threads at once.
        name: what they are called.
    """

    def __init__(self, most: int, name: str) -> None:
        self._name = name
        self._room = asyncio.Semaphore(most)

    async def free(self) -> None:
        """Wait until one more may run; `run` follows at once."""
        await self._room.acquire()

    async def run(self, call: Callable[[], T]) -> T:
        """What `call` returns or raises, in the thread that `free` has waited for.

        Cancelled, it leaves the thread to end by itself.

        Raises:
            RuntimeError: the system gives no more threads.
        """
        return await asyncio.wrap_future(self._begin(call))

    def _begin(self, call: Callable[[], T]) -> Future[T]:
        said: Future[T] = Future()
        said.set_running_or_notify_cancel()  # From now on it cannot be cancelled.
        loop = asyncio.get_running_loop()
        said.add_done_callback(lambda _: self._freed(loop))
        try:
            threading.Thread(
                target=_work, args=(said, call), name=self._name, daemon=True
            ).start()
        except RuntimeError:
            self._room.release()
            raise
        return said

    def _freed(self, loop: asyncio.AbstractEventLoop) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(self._room.release)


def _work(said: Future[T], call: Callable[[], T]) -> None:
    try:
        said.set_result(call())
    except BaseException as error:  # noqa: BLE001 - raised where it is awaited
        said.set_exception(error)
        # Else the error would hold this frame, and the frame the error.
        del said
