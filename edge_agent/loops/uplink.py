"""Send spills to the cloud within a window. What does not fit waits in the outbox.

The first send of a fresh spill goes out beside its commit; everything else (what was
offered while the link was down, what was sent and never answered) is claimed from
the outbox when it is due, never loaded whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from broker import topics
from broker.codec import WireError, repack, seal_envelope
from broker.link import LinkDown
from broker.messages import Request
from edge_agent.adapters.outbox import Outbox, OutboxFailed, enduring
from edge_agent.core.delivery import Spill, resend_delay_ms
from edge_agent.core.ready import Ready, ReadySet
from edge_agent.core.window import SendWindow
from lifecycle.journal import NOBODY, Event, Journal

log = structlog.get_logger(__name__)

READY_ROWS: Final = 512
READY_BYTES: Final = 8 * 1024**2
CLAIM_EVERY_S: Final = 0.5


class Link(Protocol):
    """What the uplink needs of an MQTT connection."""

    @property
    def up(self) -> bool:
        """Whether a publish can be tried."""
        ...

    def publish(
        self, topic: str, payload: bytes, *, timeout_s: float = 10.0
    ) -> Awaitable[None]:
        """Begin at once, return on PUBACK; raise LinkDown, then or when awaited."""
        ...


class NoLink:
    """The cloud side of an agent that has none."""

    up = False

    async def publish(
        self,
        topic: str,
        payload: bytes,  # noqa: ARG002 - a link's arguments
        *,
        timeout_s: float = 10.0,  # noqa: ARG002 - a link's arguments
    ) -> None:
        """There is nowhere to.

        Raises:
            LinkDown: always.
        """
        raise LinkDown(f"this agent has no cloud to publish {topic} to")


@dataclass(frozen=True, slots=True)
class UplinkLimits:
    """How much may be under way, and how patient to be."""

    window: int
    envelope_items: int
    envelope_bytes: int
    resend_first_s: float
    resend_most_s: float


@dataclass(slots=True)
class UplinkCounters:
    """What has happened since the start."""

    envelopes: int = 0
    sent: int = 0
    resent: int = 0
    send_failures: int = 0
    stored_unreadable: int = 0


class Uplink:
    """The agent's sending side. `run` is its only loop."""

    def __init__(  # noqa: PLR0913 - the parts it stands on
        self,
        *,
        agent: str,
        link: Link,
        outbox: Outbox,
        limits: UplinkLimits,
        now_ms: Callable[[], float],
        rng: random.Random,
        journal: Journal = NOBODY,
    ) -> None:
        self._agent = agent
        self._link = link
        self._outbox = outbox
        self._limits = limits
        self._now_ms = now_ms
        self._rng = rng
        self._journal = journal
        self._ready = ReadySet()
        self._number = 0
        self._window = SendWindow(limits.window)
        self._in_flight = 0
        self._wake = asyncio.Event()
        self._claim_now = True
        self._sends: asyncio.TaskGroup | None = None
        self.counters = UplinkCounters()
        # Told of each stored spill that is about to be sent.
        self.on_claim: Callable[[Spill], None] = lambda _: None
        # Told how many bytes each publish has, resends included.
        self.on_bytes: Callable[[int], None] = lambda _: None
        # Added to the agent's time to give the pool's; learned from results.
        self.pool_offset_ms = 0.0

    @property
    def window(self) -> int:
        """How many publishes may be under way, as the link bears it now."""
        return self._window.size

    def resend_at_ms(self, attempt: int) -> float:
        """When a request sent now for the n-th time (from 0) is due again."""
        delay = resend_delay_ms(
            attempt,
            first_s=self._limits.resend_first_s,
            most_s=self._limits.resend_most_s,
            chance=self._rng.random(),
        )
        return self._now_ms() + delay

    def has_room(self, size: int) -> bool:
        """Whether a fresh spill of `size` bytes can be sent beside its commit."""
        return (
            self._sends is not None
            and self._link.up
            and self._ready.rows < READY_ROWS
            and self._ready.bytes + size <= READY_BYTES
        )

    def offer(self, spill: Spill) -> None:
        """Send a fresh spill as soon as the window allows."""
        self._ready.add(spill.priority, self._entry(spill, spill.request))
        self._send_what_fits()

    def link_changed(self, up: bool) -> None:
        """Look for due rows as soon as the link is back."""
        if up:
            self.nudge()

    def nudge(self) -> None:
        """Look for due rows now."""
        self._claim_now = True
        self._wake.set()

    async def run(self) -> None:
        """Send what is ready and claim what is due, until cancelled."""
        # A run that failed has ended its sends, some before they began; what they
        # carried is due again at its own time.
        self._in_flight = 0
        async with asyncio.TaskGroup() as sends:
            self._sends = sends
            try:
                await enduring(self._claim_for_ever)
            finally:
                self._sends = None

    async def _claim_for_ever(self) -> None:
        while True:
            try:
                async with asyncio.timeout(CLAIM_EVERY_S):
                    await self._wake.wait()
            except TimeoutError:
                self._claim_now = True
            self._wake.clear()
            if self._link.up and self._claim_now and self._half_empty():
                await self._claim()
            self._send_what_fits()

    def _half_empty(self) -> bool:
        return (
            self._ready.rows < READY_ROWS // 2 and self._ready.bytes < READY_BYTES // 2
        )

    async def _claim(self) -> None:
        claimed = await self._outbox.claim_due(
            self._now_ms(),
            limit=READY_ROWS - self._ready.rows,
            max_bytes=READY_BYTES - self._ready.bytes,
            next_due_ms=lambda sends: self.resend_at_ms(sends - 1),
        )
        # More may be due: ask again as soon as there is room.
        self._claim_now = bool(claimed)
        for spill in claimed:
            self.on_claim(spill)
            self._ready.add(spill.priority, self._entry(spill, self._renewed(spill)))
        self.counters.resent += sum(spill.attempt > 1 for spill in claimed)

    def _renewed(self, spill: Spill) -> bytes:
        """The stored request with today's attempt and the pool's clock."""
        expires_at_ms = max(0, round(spill.deadline_ms + self.pool_offset_ms))
        try:
            # 0 is the first attempt.
            return repack(
                spill.request,
                {"attempt": spill.attempt - 1, "expires_at_ms": expires_at_ms},
            )
        except WireError as error:
            self.counters.stored_unreadable += 1
            log.error("stored_request_unreadable", id=spill.id, error=str(error))
            return spill.request

    def _entry(self, spill: Spill, packed: bytes) -> Ready:
        self._number += 1
        topic = topics.requests(self._agent, spill.model, spill.priority)
        return Ready(spill.deadline_ms, self._number, topic, spill.key, packed)

    def _send_what_fits(self) -> None:
        sends = self._sends
        if sends is None or not self._link.up:
            return
        limits = self._limits
        while self._ready.rows and self._in_flight < self._window.size:
            batch = self._ready.take(
                max_items=limits.envelope_items, max_bytes=limits.envelope_bytes
            )
            self._send(sends, batch)
        if self._claim_now and self._half_empty():
            self._wake.set()

    def _send(self, sends: asyncio.TaskGroup, batch: list[Ready]) -> None:
        for each in batch:
            self._journal.note(Event.SENDING, *each.key)
        payload = seal_envelope(Request, [each.packed for each in batch])
        ticket = self._window.ticket()
        began_ms = self._now_ms()
        try:
            # On its way before this returns: only the PUBACK is left to wait for.
            confirmed = self._link.publish(batch[0].topic, payload)
        except LinkDown:
            self._window.lost(ticket)
            sends.create_task(self._put_back(batch))
            return
        self.on_bytes(len(payload))
        self._in_flight += 1
        sends.create_task(self._confirm(batch, confirmed, ticket, began_ms))

    async def _confirm(
        self,
        batch: list[Ready],
        confirmed: Awaitable[None],
        ticket: int,
        began_ms: float,
    ) -> None:
        try:
            await confirmed
            self._window.acknowledged(
                (self._now_ms() - began_ms) / 1000.0,
                full=self._in_flight >= self._window.size,
            )
            self.counters.envelopes += 1
            self.counters.sent += len(batch)
            for each in batch:
                self._journal.note(Event.SENT, *each.key)
        except LinkDown:
            self._window.lost(ticket)
            await self._put_back(batch)
        finally:
            self._in_flight -= 1
        self._send_what_fits()

    async def _put_back(self, batch: list[Ready]) -> None:
        """Not acknowledged: due at once, and claimed when the link is back."""
        self.counters.send_failures += 1
        with contextlib.suppress(OutboxFailed):  # then due at its own time
            await self._outbox.reschedule([each.key for each in batch], self._now_ms())
        self._claim_now = True
