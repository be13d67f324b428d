"""The queue of dead letters, for one operator at a time. Looking takes nothing out of it.

A letter leaves the queue only once what replaces it is confirmed, so a command that is
killed midway has lost nothing; at most it has sent a request twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

from broker.amqp.browser import Browser, QueueInUse
from broker.amqp.delivery import Delivery
from broker.amqp.link import AmqpLink
from broker.amqp.queues import NoSuchQueue
from broker.dead_letters import RETRIED
from broker.link import LinkDown
from broker.topology import DEAD_QUEUE
from fleet.core.letters import Choice, Filter, Letter, read_letter

AT_ONCE: Final = 32
# RabbitMQ may notice the end of a command that was killed a moment after it.
IN_USE_PATIENCE_S: Final = 2.0
IN_USE_AGAIN_S: Final = 0.1

T = TypeVar("T")


class StoreUnavailable(Exception):
    """The dead letters cannot be looked at; says why and what to do."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A letter, and what it takes to act on it."""

    letter: Letter
    delivery: Delivery


class DeadStore:
    """The letters, as long as this operator has them."""

    def __init__(self, link: AmqpLink, browser: Browser, timeout_s: float) -> None:
        self._link = link
        self._browser = browser
        self._timeout_s = timeout_s

    @property
    def count(self) -> int:
        """How many letters there were when this was opened."""
        return self._browser.count

    async def letters(self) -> AsyncIterator[Kept]:
        """Each letter that there was when this was opened, oldest first.

        Raises:
            LinkDown: the connection was lost.
        """
        for _ in range(self._browser.count):
            delivery = await self._browser.next()
            if delivery is None:
                return
            letter = read_letter(delivery.routing_key, delivery.body, delivery.headers)
            yield Kept(letter, delivery)

    async def chosen(self, which: Choice | Filter, now_ms: int) -> AsyncIterator[Kept]:
        """Those of the letters that are meant.

        Raises:
            BadChoice: a request is named, and there is none or more than one of it.
            LinkDown: the connection was lost.
        """
        if isinstance(which, Filter):
            async for kept in self.letters():
                if which.passes(kept.letter, now_ms):
                    yield kept
            return
        # All are looked at: only then is it known that no other has the same id.
        found = [kept async for kept in self.letters() if which.holds(kept.letter)]
        which.check_one(each.letter for each in found)
        for kept in found:
            yield kept

    async def send_again(self, several: Sequence[tuple[Kept, bytes]]) -> None:
        """Publish each letter's new body on its topic, and take out what is confirmed.

        Raises:
            LinkDown: not all were; those that were not are still there.
        """
        failures: list[LinkDown] = []

        async def send(kept: Kept, body: bytes) -> None:
            try:
                await self._link.publish(
                    kept.letter.routing_key,
                    body,
                    headers={RETRIED: kept.letter.retried + 1},
                    timeout_s=self._timeout_s,
                )
                await self._browser.remove(kept.delivery)
            except LinkDown as error:
                failures.append(error)

        for start in range(0, len(several), AT_ONCE):
            async with asyncio.TaskGroup() as group:
                for kept, body in several[start : start + AT_ONCE]:
                    group.create_task(send(kept, body))
            if failures:
                raise failures[0]

    async def remove(self, kept: Kept) -> None:
        """Take a letter out, for good.

        Raises:
            LinkDown: the connection was lost; it may still be there.
        """
        await self._browser.remove(kept.delivery)


async def with_dead_store(
    amqp_url: str, work: Callable[[DeadStore], Awaitable[T]], *, timeout_s: float
) -> T:
    """Connect, do `work` with the dead letters, put back what it has not taken out.

    Args:
        amqp_url: RabbitMQ.
        work: done while nobody else has the letters.
        timeout_s: how long to try to connect, and to wait for each confirm.

    Raises:
        StoreUnavailable: RabbitMQ cannot be reached or was lost, there is no such
            queue, or another operator has it.
        BadUrl: the URL names no broker.
    """
    link = AmqpLink(amqp_url, name="dead letters")
    done: list[T] = []
    failed: Exception | None = None
    async with asyncio.TaskGroup() as group:
        running = group.create_task(link.run())
        try:
            async with _opened(link, timeout_s) as store:
                done.append(await work(store))
        except Exception as error:  # noqa: BLE001 - raised below, outside the group
            failed = error
        finally:
            running.cancel()
    if failed is not None:
        raise failed
    return done[0]


@asynccontextmanager
async def _opened(link: AmqpLink, timeout_s: float) -> AsyncIterator[DeadStore]:
    try:
        async with asyncio.timeout(timeout_s):
            await link.wait_up()
    except TimeoutError:
        why = link.last_error or "RabbitMQ did not answer"
        raise StoreUnavailable(f"RabbitMQ cannot be reached: {why}") from None
    try:
        async with AsyncExitStack() as stack:
            browser = await _browse(link, stack)
            yield DeadStore(link, browser, timeout_s)
    except QueueInUse:
        raise StoreUnavailable(
            "another `overspill dead` is looking at the dead letters: try again when "
            "it has ended"
        ) from None
    except NoSuchQueue as error:
        raise StoreUnavailable(
            f"{error}: start a worker once, or load the rendered definitions"
        ) from error
    except LinkDown as error:
        raise StoreUnavailable(
            f"{error}; what was not said to be done is still among the dead letters"
        ) from error


async def _browse(link: AmqpLink, stack: AsyncExitStack) -> Browser:
    """Have the letters, with patience for a command that has just ended."""
    loop = asyncio.get_running_loop()
    give_up_s = loop.time() + IN_USE_PATIENCE_S
    while True:
        try:
            return await stack.enter_async_context(link.browse(DEAD_QUEUE))
        except QueueInUse:
            if loop.time() >= give_up_s:
                raise
        await asyncio.sleep(IN_USE_AGAIN_S)
