"""Links that run beside a test, and what they heard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from broker.amqp.delivery import Delivery
from broker.amqp.link import AmqpLink
from broker.backoff import Backoff
from broker.mqtt.link import MqttLink
from broker.mqtt.target import MqttTarget

PATIENCE_S = 30.0


def quick() -> Backoff:
    """Tests wait for real servers, so links come back within half a second."""
    return Backoff(0.05, 0.5)


@dataclass
class Heard:
    """Messages and changes in the order in which a link gave them."""

    messages: asyncio.Queue[tuple[str, bytes]] = field(default_factory=asyncio.Queue)
    deliveries: asyncio.Queue[Delivery] = field(default_factory=asyncio.Queue)
    changes: list[bool] = field(default_factory=list)

    def on_message(self, topic: str, payload: bytes) -> None:
        self.messages.put_nowait((topic, payload))

    async def on_delivery(self, delivery: Delivery) -> None:
        self.deliveries.put_nowait(delivery)

    def on_change(self, up: bool) -> None:
        self.changes.append(up)

    async def message(self) -> tuple[str, bytes]:
        async with asyncio.timeout(PATIENCE_S):
            return await self.messages.get()

    async def delivery(self) -> Delivery:
        async with asyncio.timeout(PATIENCE_S):
            return await self.deliveries.get()


@asynccontextmanager
async def running(run: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Run a link beside the body, and cancel it at its end."""
    async with asyncio.TaskGroup() as beside:
        task = beside.create_task(run())
        try:
            yield
        finally:
            task.cancel()


@asynccontextmanager
async def mqtt(
    url: str, client_id: str, *filters: str, heard: Heard | None = None, **more: Any
) -> AsyncIterator[MqttLink]:
    """A running MQTT link that is up."""
    heard = heard or Heard()
    link = MqttLink(
        MqttTarget.from_url(url),
        client_id=client_id,
        subscriptions=filters,
        on_message=heard.on_message,
        on_change=heard.on_change,
        backoff=quick(),
        **more,
    )
    async with running(link.run):
        await within(link.wait_up())
        yield link


@asynccontextmanager
async def amqp(
    url: str, *, heard: Heard | None = None, **more: Any
) -> AsyncIterator[AmqpLink]:
    """A running AMQP link that is up."""
    heard = heard or Heard()
    link = AmqpLink(
        url,
        name="test",
        on_delivery=heard.on_delivery,
        on_change=heard.on_change,
        backoff=quick(),
        **more,
    )
    async with running(link.run):
        await within(link.wait_up())
        yield link


async def within(
    awaitable: Coroutine[Any, Any, object], seconds: float = PATIENCE_S
) -> None:
    async with asyncio.timeout(seconds):
        _ = await awaitable
