"""Agents that do at once what they are told, over real MQTT, without a model.

They read their desired document where the worker pool would, and report as a real agent
does: what they serve, of which generation, and how it does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from broker import topics
from broker.codec import decode, encode
from broker.messages import Desired, DesiredModel, HealthReport, Report, SlotReport
from broker.mqtt.link import MqttLink
from broker.mqtt.target import MqttTarget
from broker.node import Node
from bundle import layout
from bundle.folder_tree import FolderTree
from bundle.source import NotThere

WELL = HealthReport(
    for_s=60, requests=400, compared=200, agreed=190, chosen=200, chosen_agreed=190
)
ILL = WELL.model_copy(update={"agreed": 20, "chosen_agreed": 20})
Health = Callable[[str], HealthReport]
"""How a version does."""


class Obedient:
    """One agent.

    Args:
        rabbit: its broker.
        name: its name there.
        registry: where desired documents lie.
        health: how each version does on it.
        facts: what it says of itself.
        refuses: versions that it does not take, and why.
    """

    def __init__(
        self,
        rabbit: Node,
        name: str,
        registry: Path,
        *,
        health: Health = lambda _: WELL,
        facts: dict[str, str] | None = None,
        refuses: dict[str, str] | None = None,
    ) -> None:
        self.name = name
        self.active: str | None = None
        self._tree = FolderTree(registry)
        self._health, self._facts = health, facts or {}
        self._refuses = refuses or {}
        self._seen: bytes | None = None
        self._hinted = asyncio.Event()
        self.link = MqttLink(
            MqttTarget.from_url(rabbit.mqtt_url(name)),
            client_id=name,
            subscriptions=[topics.downlink(name)],
            on_message=lambda _topic, _payload: self._hinted.set(),
        )

    async def run(self) -> None:
        """Report, then obey each hint, for ever."""
        await self.link.wait_up()
        await self._report()
        while True:
            await self._hinted.wait()
            self._hinted.clear()
            for wanted in self._wanted():
                await self._report(self._slot(wanted))

    def _wanted(self) -> list[DesiredModel]:
        try:
            data = self._tree.read(layout.desired(self.name), max_bytes=10**6)
        except NotThere:
            return []
        if data == self._seen:
            return []
        self._seen = data
        (document,) = decode(data, Desired).items
        return list(document.models)

    def _slot(self, wanted: DesiredModel) -> SlotReport:
        before = self.active
        said: dict[str, Any] = {"state": "swapped"}
        if wanted.version in self._refuses:
            said = {"state": "refused", "reason": self._refuses[wanted.version]}
        else:
            self.active = wanted.version
        return SlotReport(
            model=wanted.model,
            active=self.active,
            previous=before,
            generation=wanted.generation,
            epoch=wanted.epoch,
            health=self._health(self.active or ""),
            before=None if before is None else self._health(before),
            **said,
        )

    async def _report(self, *slots: SlotReport) -> None:
        said = Report(
            agent=self.name, at_ms=1, slots=list(slots), facts=dict(self._facts)
        )
        await self.link.publish(topics.telemetry(self.name), encode(said))


@asynccontextmanager
async def obeying(agents: Iterable[Obedient]) -> AsyncIterator[None]:
    """The agents are there for as long as the block runs."""
    async with asyncio.TaskGroup() as group:
        tasks = []
        for each in agents:
            tasks += [group.create_task(each.link.run()), group.create_task(each.run())]
        yield
        for task in tasks:
            task.cancel()
