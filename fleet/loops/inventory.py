"""Reports from the queue into the database, many to a commit, acknowledged after it.

What follows from them for rollouts is the conductor's: it hears whose reports were
written, and looks when it is ready, so a thousand reports are not a thousand looks.

Who reports is what the routing key says, which the broker enforced; never what the
payload says. A report that cannot be read is counted, logged and acknowledged: it
would be no better the next time. A database that cannot be written keeps reports
unacknowledged until it can.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from broker.backoff import Backoff
from broker.codec import WireError, decode
from broker.messages import Report
from broker.topics import BadId, check_id, read_agent
from fleet.adapters.state.database import DatabaseUnavailable, FleetDatabase
from fleet.core.devices import observe
from lifecycle.clock import Clock

log = structlog.get_logger(__name__)

MOST_AT_ONCE: Final = 256


class Delivered(Protocol):
    """The part of an AMQP delivery that is needed here."""

    routing_key: str
    body: bytes

    def ack(self) -> None:
        """Tell the broker to forget it."""
        ...


@dataclass(frozen=True, slots=True)
class Said:
    """What one agent said of itself."""

    agent: str
    report: Report


class Inventory:
    """Takes deliveries and writes what they say.

    Args:
        database: open.
        clock: gives the time of arrival.
        heard: called with the agents whose reports were written.
        prefetch: how many deliveries may be held.
        backoff: how long to wait when the database cannot be written.
    """

    def __init__(
        self,
        database: FleetDatabase,
        *,
        clock: Clock,
        heard: Callable[[Collection[str]], None],
        prefetch: int = 200,
        backoff: Backoff | None = None,
    ) -> None:
        self.malformed = 0
        self._database = database
        self._clock = clock
        self._heard = heard
        self._backoff = backoff or Backoff()
        self._taken: asyncio.Queue[Delivered] = asyncio.Queue(maxsize=prefetch)

    async def take(self, delivery: Delivered) -> None:
        """Hold a delivery until it is written; waits when too many are held."""
        await self._taken.put(delivery)

    async def settled(self) -> None:
        """Return once every delivery taken so far is written and acknowledged."""
        await self._taken.join()

    async def run(self) -> None:
        """Write what was taken, for ever."""
        while True:
            batch = [await self._taken.get()]
            while len(batch) < MOST_AT_ONCE and not self._taken.empty():
                batch.append(self._taken.get_nowait())
            said = [each for delivery in batch for each in self._read(delivery)]
            await self._write(said)
            # Ack last: a crash here writes the same again, but forgets nothing.
            for delivery in batch:
                delivery.ack()
                self._taken.task_done()
            self._heard({each.agent for each in said})

    def _read(self, delivery: Delivered) -> list[Said]:
        agent = read_agent(delivery.routing_key)
        try:
            check_id("agent", agent or "")
            envelope = decode(delivery.body, Report)
        except (BadId, WireError) as error:
            self._count_malformed(delivery.routing_key, str(error))
            return []
        for bad in envelope.bad:
            self._count_malformed(delivery.routing_key, bad.reason)
        said: list[Said] = []
        for report in envelope.items:
            try:
                # An endless number is none in JSON: PostgreSQL would never take it, and
                # this report and all behind it would be tried for ever.
                json.dumps(report.model_dump(), allow_nan=False)
            except ValueError:
                self._count_malformed(delivery.routing_key, "a number in it is endless")
            else:
                said.append(Said(agent or "", report))
        return said

    def _count_malformed(self, routing_key: str, reason: str) -> None:
        self.malformed += 1
        log.warning(
            "report dropped: cannot be read",
            routing_key=routing_key[:200],
            reason=reason,
            malformed=self.malformed,
        )

    async def _write(self, said: Sequence[Said]) -> None:
        if not said:
            return
        while True:
            try:
                await asyncio.to_thread(self._record, said)
            except DatabaseUnavailable as error:
                wait_s = self._backoff.next_s()
                log.error(
                    "reports wait: the fleet's state cannot be written",
                    reason=str(error),
                    waiting=len(said),
                    retry_in_s=round(wait_s, 2),
                )
                await asyncio.sleep(wait_s)
            else:
                self._backoff.reset()
                return

    def _record(self, said: Sequence[Said]) -> None:
        reporting = {each.agent for each in said}
        with self._database.writing() as ledger:
            # Not before: whoever waits for the lock may wait while the clock is set back,
            # and what is of another time would be brought to now by nobody any more.
            now_ms = self._clock.wall_ms()
            known = ledger.devices_named(reporting)
            for agent in sorted(reporting - known.keys()):
                log.info("new agent", agent=agent)
            for each in said:
                known[each.agent] = observe(
                    known.get(each.agent), each.agent, each.report, now_ms
                )
            ledger.keep_devices(known.values())
