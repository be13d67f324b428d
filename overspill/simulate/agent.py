"""One simulated agent from its first connection to its end, and the fault it has."""

from __future__ import annotations

import asyncio
from typing import Final

from broker import topics
from broker.mqtt.target import MqttTarget
from edge_agent.adapters.mqtt_source import MqttSource
from edge_agent.core.slots import Slots
from overspill.simulate.flash import PLENTY_BYTES, Flash
from overspill.simulate.line import Line
from overspill.simulate.plan import Fault, Persona, Trouble
from overspill.simulate.process import AgentProcess, Body
from overspill.simulate.surroundings import Surroundings

TIMEOUT_S: Final = 20.0
LOOK_EVERY_S: Final = 0.2
REBOOT_S: Final = 1.0


class SimulatedAgent:
    """An agent, until it is cancelled."""

    def __init__(
        self, persona: Persona, target: MqttTarget, around: Surroundings
    ) -> None:
        trouble = (
            Trouble() if persona.fault is None else around.plan.faults[persona.fault]
        )
        self.persona = persona
        self._around = around
        self._trouble = trouble
        self._flash = Flash(
            around.folder / persona.agent, around.unpacked, around.provisioned
        )
        self._line = Line(
            persona.agent,
            target,
            hear=self._hear,
            changed=self._link_changed,
            reconnect_s=around.plan.reconnect_s,
            persistent=not around.visit,
            bytes_per_s=trouble.bytes_per_s if persona.fault is Fault.SLOW else None,
        )
        self._source = MqttSource(
            agent=persona.agent, link=self._line, timeout_s=TIMEOUT_S
        )
        self._crashes_left = 0
        self._was_full = False
        self._crash = asyncio.Event()
        self._process: AgentProcess | None = None

    @property
    def up(self) -> bool:
        """Whether it is connected."""
        return self._line.up

    @property
    def down(self) -> str | None:
        """What keeps it from being connected."""
        return self._line.last_error

    @property
    def heard_bytes(self) -> int:
        """What has come to it."""
        return self._line.heard_bytes

    async def run(self, connect_after_s: float) -> None:
        """Be an agent, until cancelled."""
        self._flash.prepare()
        if self._around.before is not None:
            self._flash.save(Slots(self._around.model, active=self._around.before))
        self._befall()
        await asyncio.sleep(connect_after_s)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._line.run())
            tasks.create_task(self._live())
            if self.persona.fault is Fault.OFFLINE:
                tasks.create_task(self._lose_line())

    async def _live(self) -> None:
        """The process of an agent, started again whenever it crashes."""
        body = Body(
            persona=self.persona,
            flash=self._flash,
            line=self._line,
            source=self._source,
            clock_s=self._clock_s,
            served=self._served,
        )
        while True:
            self._crash.clear()
            self._process = AgentProcess(body, self._around)
            try:
                async with asyncio.TaskGroup() as tasks:
                    running = tasks.create_task(self._process.run())
                    await self._crash.wait()
                    # As a crash is: nothing is written down in good order.
                    running.cancel()
            finally:
                self._process = None
            await asyncio.sleep(REBOOT_S)

    # --- its fault --------------------------------------------------------------------

    def _befall(self) -> None:
        match self.persona.fault:
            case Fault.BAD_FLASH:
                self._flash.damages = self._trouble.times or -1
            case Fault.CRASH_LOOP:
                self._crashes_left = self._trouble.times or -1
            case _:
                pass

    def _served(self, version: str) -> None:
        """A version serves from now on; it may end the process."""
        if version != self._around.before and self._crashes_left:
            self._crashes_left -= 1
            self._crash.set()

    def _clock_s(self) -> float:
        """What the device takes the time to be."""
        wrong = self.persona.fault is Fault.WRONG_CLOCK
        ahead_s = self._trouble.ahead_s if wrong else 0.0
        return self._around.clock.wall_ms() / 1000.0 + ahead_s

    async def _lose_line(self) -> None:
        """Be away from the middle of the first pull on."""
        due = self._trouble.after_share * self._around.plan.model_bytes
        while self._line.heard_bytes < due:  # noqa: ASYNC110 - seldom, and cheap
            await asyncio.sleep(LOOK_EVERY_S)
        await self._line.fail_for(self._trouble.for_s)

    def _fill_disk(self) -> None:
        """The disk is full just when there is an update, for a while or for good."""
        if self.persona.fault is not Fault.FULL_DISK or self._was_full:
            return
        self._was_full = True
        self._flash.free = self._trouble.free_bytes
        if self._trouble.for_s:
            loop = asyncio.get_running_loop()
            loop.call_later(self._trouble.for_s, self._make_room)

    def _make_room(self) -> None:
        self._flash.free = PLENTY_BYTES

    # --- its line ---------------------------------------------------------------------

    def _link_changed(self, up: bool) -> None:
        if self._process is not None:
            self._process.link_changed(up=up)

    def _hear(self, topic: str, payload: bytes) -> None:
        if self._source.on_message(topic, payload) or self._process is None:
            return
        if topic == topics.commands(self.persona.agent):
            self._fill_disk()
            self._process.updates.look_now()
