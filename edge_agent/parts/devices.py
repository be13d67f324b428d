"""The devices' side: the broker they publish to, and the link that hears them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable

from broker.mqtt.link import MqttLink
from broker.mqtt.target import MqttTarget
from edge_agent.adapters.embedded_broker import EmbeddedBroker
from edge_agent.loops.ingress import REQUEST_FILTER, Ingress
from edge_agent.settings import AgentSettings
from lifecycle.supervisor import Supervisor


class Devices:
    """How devices reach the agent, and hear of it.

    Args:
        settings: every knob.
        hear: told the topic and payload of each message.
        changed: told whether devices can be heard.
    """

    def __init__(
        self,
        settings: AgentSettings,
        *,
        hear: Callable[[str, bytes], None],
        changed: Callable[[bool], None],
    ) -> None:
        self._host, self._port = settings.embedded_host, settings.embedded_port
        self._embeds = settings.local_url is None
        url = settings.local_url or f"mqtt://{self._host}:{self._port}"
        self.link = MqttLink(
            MqttTarget.from_url(url),
            client_id=f"overspill-{settings.agent_id}",
            subscriptions=[REQUEST_FILTER],
            on_message=hear,
            on_change=changed,
            window=100,
        )

    async def open(self, stack: contextlib.AsyncExitStack) -> None:
        """Start the broker, where it is the agent's own."""
        if self._embeds:
            await stack.enter_async_context(EmbeddedBroker(self._host, self._port))

    def start(self, loops: Supervisor, ingress: Ingress) -> None:
        """Begin to take in what devices ask."""
        loops.start("ingress", functools.partial(ingress.run, self.link))
        loops.start("devices' link", self.link.run)

    async def heard(self, stop: asyncio.Event) -> bool:
        """Wait for the devices' broker, which may come much later, or for the end."""
        async with asyncio.TaskGroup() as either:
            up = either.create_task(self.link.wait_up())
            stopped = either.create_task(stop.wait())
            await asyncio.wait((up, stopped), return_when=asyncio.FIRST_COMPLETED)
            up.cancel()
            stopped.cancel()
        return not stop.is_set()
