"""Tell the fleet what this agent serves and how it fares, on change and now and then."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import structlog

from broker import topics
from broker.codec import encode
from broker.link import LinkDown
from broker.messages import Report
from edge_agent.loops.uplink import Link

log = structlog.get_logger(__name__)


class Reporting:
    """Publishes reports; a lost one is followed by the next."""

    def __init__(
        self,
        *,
        agent: str,
        link: Link,
        report: Callable[[], Report],
        every_s: float,
        rng: random.Random,
    ) -> None:
        self._topic = topics.telemetry(agent)
        self._link = link
        self._report = report
        self._every_s = every_s
        self._rng = rng
        self._now = asyncio.Event()

    def report_now(self) -> None:
        """Something changed that the fleet should know soon."""
        self._now.set()

    def link_changed(self, up: bool) -> None:
        """Report as soon as the link is back."""
        if up:
            self.report_now()

    async def run(self) -> None:
        """Report until cancelled."""
        while True:
            try:
                async with asyncio.timeout(self._every_s * self._rng.uniform(0.8, 1.2)):
                    await self._now.wait()
            except TimeoutError:
                pass
            self._now.clear()
            if not self._link.up:
                continue
            try:
                await self._link.publish(self._topic, encode(self._report()))
            except LinkDown as error:
                log.debug("report_not_sent", error=str(error))
