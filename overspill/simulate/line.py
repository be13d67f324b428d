"""An agent's real MQTT connection, made slow or cut when its fault says so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from broker import topics
from broker.backoff import Backoff
from broker.mqtt.link import MqttLink
from broker.mqtt.target import MqttTarget

# As the agent's own: what an uplink has in flight, and a few beside it.
WINDOW: Final = 40
# The broker need not hear from a thousand of them ten times a minute each.
KEEPALIVE_S: Final = 30


class Line:
    """The link of one agent.

    Args:
        agent: its name, which is its user at the broker.
        target: the broker.
        hear: called with topic and payload.
        changed: called when the link comes up or is lost.
        reconnect_s: without a broker it tries again after so long at most.
        persistent: whether the broker keeps its session while it is away.
        bytes_per_s: what it carries downwards; None for all that comes.
    """

    def __init__(  # noqa: PLR0913 - what a line is, by name
        self,
        agent: str,
        target: MqttTarget,
        *,
        hear: Callable[[str, bytes], None],
        changed: Callable[[bool], None],
        reconnect_s: float,
        persistent: bool = True,
        bytes_per_s: float | None = None,
    ) -> None:
        self.heard_bytes = 0
        self._hear = hear
        self._bytes_per_s = bytes_per_s
        self._free_at_s = 0.0
        self._open = asyncio.Event()
        self._open.set()
        self._cut = asyncio.Event()
        self._link = MqttLink(
            target,
            client_id=agent,
            subscriptions=[topics.downlink(agent)],
            on_message=self._take,
            on_change=changed,
            persistent=persistent,
            window=WINDOW,
            keepalive_s=KEEPALIVE_S,
            backoff=Backoff(most_s=reconnect_s),
        )

    @property
    def up(self) -> bool:
        """Whether a publish can be tried."""
        return self._link.up

    @property
    def last_error(self) -> str | None:
        """What keeps it down."""
        return self._link.last_error

    def publish(
        self, topic: str, payload: bytes, *, timeout_s: float = 10.0
    ) -> Awaitable[None]:
        """As `MqttLink.publish`."""
        return self._link.publish(topic, payload, timeout_s=timeout_s)

    async def hear(self, topic: str) -> None:
        """As `MqttLink.hear`."""
        await self._link.hear(topic)

    async def unhear(self, topic: str) -> None:
        """As `MqttLink.unhear`."""
        await self._link.unhear(topic)

    async def run(self) -> None:
        """Stay connected, except while it is cut."""
        while True:
            await self._open.wait()
            self._cut.clear()
            async with asyncio.TaskGroup() as either:
                link = either.create_task(self._link.run())
                await self._cut.wait()
                link.cancel()

    async def fail_for(self, seconds: float) -> None:
        """Be away; 0 for good."""
        self._open.clear()
        self._cut.set()
        if seconds:
            await asyncio.sleep(seconds)
            self._open.set()

    def _take(self, topic: str, payload: bytes) -> None:
        self.heard_bytes += len(payload)
        if self._bytes_per_s is None:
            self._hear(topic, payload)
            return
        # What comes on a slow line is there when the line has carried it.
        loop = asyncio.get_running_loop()
        self._free_at_s = max(loop.time(), self._free_at_s)
        self._free_at_s += len(payload) / self._bytes_per_s
        loop.call_at(self._free_at_s, self._hear, topic, payload)
