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
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def finish(result: T | None, error: BaseException | None) -> None:
            self._room.release()
            if done.done():
                return  # given up
            if error is None:
                done.set_result(result)  # type: ignore[arg-type] # it is a T then
            else:
                done.set_exception(error)

        def work() -> None:
            result, error = None, None
            try:
                result = call()
            except BaseException as caught:  # noqa: BLE001 - raised where it is awaited
                error = caught
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(finish, result, error)

        try:
            threading.Thread(target=work, name=self._name, daemon=True).start()
        except RuntimeError:
            self._room.release()
            raise
        return await done
