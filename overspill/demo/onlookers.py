"""Who look on while a demo runs: at devices, agents, the pool's queue and processes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from broker.amqp.delivery import Delivery
from broker.amqp.link import AmqpLink
from broker.amqp.queues import NoSuchQueue
from broker.link import LinkDown
from broker.topology import model_queues
from overspill.demo.cast import CastDevice
from overspill.demo.live import DeviceLine, Scene
from overspill.demo.promises import Accounts
from overspill.program import ProgramEnded
from overspill.system import AgentPlace, System
from overspill.tasks import alongside, together

LOOK_EVERY_S: Final = 0.25
ASK_EVERY_S: Final = 0.5
DEPTH_EVERY_S: Final = 0.5


class Onlookers:
    """Keep the scene up to date, and the agents' own accounts.

    Args:
        system: ready.
        model: whose queue and promises they look at.
        cast: the devices, each of an agent of the system.
        scene: where what they see is shown; its lines become the cast's.
    """

    def __init__(
        self, system: System, model: str, cast: Sequence[CastDevice], scene: Scene
    ) -> None:
        self._system = system
        self._model = model
        self._cast = cast
        self._scene = scene
        self.accounts = Accounts()
        scene.lines = [
            DeviceLine(each.name, each.place.agent, _local(each.place)) for each in cast
        ]

    async def look(self) -> None:
        """Look on until cancelled.

        Raises:
            ProgramEnded: the system has lost what it cannot do without.
        """
        await together(
            self._ask_agents(),
            self._ask_queues(),
            self._until_crippled(),
            *(
                self._follow(each, line)
                for each, line in zip(self._cast, self._scene.lines, strict=True)
            ),
        )

    async def _follow(self, device: CastDevice, line: DeviceLine) -> None:
        while True:
            line.progress = device.progress
            await asyncio.sleep(LOOK_EVERY_S)

    async def _ask_agents(self) -> None:
        while True:
            await self.look_at_agents()
            await asyncio.sleep(ASK_EVERY_S)

    async def look_at_agents(self) -> None:
        """Ask each agent how it is, now."""
        for place, line in zip(self._system.agents, self._scene.lines, strict=True):
            line.status = await self._system.status(place) or {}
            self.accounts.take(place.agent, line.status, self._model)

    async def _ask_queues(self) -> None:
        names = [queue.name for queue in model_queues(self._model)]
        link = AmqpLink(
            self._system.amqp_url("admin"),
            name="demo",
            queues=(),
            consume={},
            on_delivery=_ignore,
        )

        async def ask() -> None:
            while True:
                try:
                    depths = [await link.depth(name) for name in names]
                    self._scene.queues = {"depth": sum(depths)}
                except (LinkDown, NoSuchQueue):
                    self._scene.queues = {"depth": None}
                await asyncio.sleep(DEPTH_EVERY_S)

        await alongside(ask(), link.run())

    async def _until_crippled(self) -> None:
        while True:
            if (program := self._system.crippled_by()) is not None:
                raise ProgramEnded(program.obituary())
            await asyncio.sleep(LOOK_EVERY_S)


async def _ignore(_delivery: Delivery) -> None:
    """Nothing is consumed here."""


def _local(place: AgentPlace) -> str:
    return "embedded" if place.embedded else "mosquitto"
