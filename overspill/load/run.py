"""One run: send what is planned when it is due, whatever the answers do, and count.

The schedule is kept by the clock alone. A request that leaves late keeps its intended
time, and how late the generator was is a figure of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from broker.link import LinkDown
from lifecycle.clock import Clock
from overspill.load.account import Account, Ending
from overspill.load.mix import Plan, Planned
from overspill.load.ways import Hears, Link, Way

CONNECT_WITHIN_S: Final = 10.0
FIRST_ERROR_AFTER_S: Final = 1.5
LOOK_EVERY_S: Final = 0.05
LEAD_S: Final = 0.1
LINGER_S: Final = 0.2
MOST_PUBLISHING: Final = 20_000


class NoConnection(Exception):
    """The load could not begin: a link did not come up."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a run waits, in seconds.

    Attributes:
        lost_after_s: beyond its deadline, until a request counts as lost.
        connect_within_s: for the links to come up.
        first_error_after_s: before a link's error ends that wait: the first address
            of a cluster may be down, and the others are tried meanwhile.
        linger_s: after the last end, for what comes twice.
    """

    lost_after_s: float = 5.0
    connect_within_s: float = CONNECT_WITHIN_S
    first_error_after_s: float = FIRST_ERROR_AFTER_S
    linger_s: float = LINGER_S


class Run:
    """One run of a plan.

    Args:
        plan: what is sent.
        way: makes the way, given whom it tells.
        clock: for the schedule.
        patience: how long it waits for what.
        most_publishing: publishes that may wait for their confirm; what would be one
            more is not sent.
    """

    def __init__(
        self,
        plan: Plan,
        way: Callable[[Hears], Way],
        *,
        clock: Clock,
        patience: Patience | None = None,
        most_publishing: int = MOST_PUBLISHING,
    ) -> None:
        self.plan = plan
        self.patience = patience or Patience()
        self.account = Account(lost_after_s=self.patience.lost_after_s)
        self.finished = False
        self._way = way(Hears(self._hear, self._link_changed))
        self._clock = clock
        self._most_publishing = most_publishing
        self._publishing = 0
        self._began_s = 0.0
        self._all_ended = asyncio.Event()
        self._sending = True
        self._listening = False

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start of the schedule; below 0 before it."""
        return self._clock.monotonic() - self._began_s if self._began_s else -LEAD_S

    async def perform(self) -> None:
        """Connect, send everything and wait for what came of it.

        Cancelled, it leaves the account as far as it has come.

        Raises:
            NoConnection: a link did not come up.
        """
        async with _running(self._way.links):
            await _until_up(self._way.links, self.patience)
            self._listening = True
            self._began_s = self._clock.monotonic() + LEAD_S
            began_wall_ms = self._clock.wall_ms() + round(LEAD_S * 1000.0)
            try:
                async with asyncio.TaskGroup() as publishes:
                    await self._send_all(began_wall_ms, publishes)
                self._sending = False
                await self._wait_for_the_rest()
                await asyncio.sleep(self.patience.linger_s)
            finally:
                self._listening = False
        self.finished = True

    async def _send_all(self, began_wall_ms: int, publishes: asyncio.TaskGroup) -> None:
        for together in self.plan.envelopes():
            # Made before it is due, so that making it delays nothing.
            message = self._way.wrap(together, began_wall_ms=began_wall_ms)
            first = together[0]
            # Also when it is due already: what is heard must be read meanwhile.
            await asyncio.sleep(max(0.0, first.offset_s - self.elapsed_s))
            self.account.give_up(self.elapsed_s)
            for each in together:
                self.account.offer(each)
            if self._publishing >= self._most_publishing:
                for each in together:
                    self.account.not_sent(each)
                continue
            self._publishing += 1
            publishes.create_task(self._publish(together, message))

    async def _publish(self, together: Sequence[Planned], message: bytes) -> None:
        at_s = self.elapsed_s
        for each in together:
            self.account.began(each, at_s)
        try:
            await self._way.send(together[0], message)
        except LinkDown as error:
            self.account.publish_failed(str(error))
        finally:
            self._publishing -= 1

    async def _wait_for_the_rest(self) -> None:
        while (until_s := self.account.next_give_up_s) is not None:
            self._all_ended.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, until_s - self.elapsed_s)):
                    await self._all_ended.wait()
            self.account.give_up(self.elapsed_s)

    def _hear(self, endings: Sequence[Ending]) -> None:
        at_s = self.elapsed_s
        for each in endings:
            self.account.hear(each, at_s)
        if not self._sending and not self.account.open:
            self._all_ended.set()

    def _link_changed(self, up: bool) -> None:
        if not up and self._listening:
            self.account.link_losses += 1


@contextlib.asynccontextmanager
async def _running(links: Sequence[Link]) -> AsyncIterator[None]:
    """Run links for as long as the body lasts; its failure is raised by itself."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each.run()) for each in links]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
    except BaseExceptionGroup as several:
        first = several.exceptions[0]
        raise first from first.__cause__


async def _until_up(links: Sequence[Link], patience: Patience) -> None:
    """Return once all links are up; a link that says why it is down ends the wait."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    within_s = patience.connect_within_s
    while not all(link.up for link in links):
        waited_s = loop.time() - began_s
        error = next(_errors(links), None)
        if waited_s >= within_s or (error and waited_s >= patience.first_error_after_s):
            raise NoConnection(
                error
                or f"no broker let all of {len(links)} links in within "
                f"{within_s:g} s: it may be overloaded; connect fewer"
            )
        await asyncio.sleep(LOOK_EVERY_S)


def _errors(links: Sequence[Link]) -> Iterator[str]:
    return (link.last_error for link in links if not link.up and link.last_error)
