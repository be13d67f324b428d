"""One simulated agent: the real loops of an edge agent around a pretended device."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from broker import topics
from broker.messages import Report, SlotReport
from broker.mqtt.target import MqttTarget
from bundle.trust import TrustedKeys
from edge_agent.adapters.model_store import StoredBundle
from edge_agent.core.served import Served
from edge_agent.core.slots import Slots
from edge_agent.loops.reporting import Reporting
from edge_agent.loops.updates import Updates, UpdateSettings
from lifecycle.clock import Clock
from overspill.simulate.flash import Flash, Unpacked
from overspill.simulate.line import Line
from overspill.simulate.plan import (
    AFTER,
    BEFORE,
    MODEL,
    Fault,
    Persona,
    Plan,
    Trouble,
    random_of,
)
from overspill.simulate.quality import Pretended

REPORT_EVERY_S: Final = 30.0
POLL_EVERY_S: Final = 30.0
TIMEOUT_S: Final = 20.0
PULL_WINDOW: Final = 4
LOOK_EVERY_S: Final = 0.2
REBOOT_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all simulated agents of one process share.

    Attributes:
        plan: of the simulation.
        folder: where unfinished pulls lie.
        unpacked: bundles that were unpacked.
        trusted: keys whose seals are believed.
        clock: of the machine.
        told: called with an agent's name and its slot, at each change.
    """

    plan: Plan
    folder: Path
    unpacked: Unpacked
    trusted: TrustedKeys
    clock: Clock
    told: Callable[[str, SlotReport], None]


class SimulatedAgent:
    """An agent from its first connection until it is cancelled."""

    def __init__(
        self, persona: Persona, target: MqttTarget, around: Surroundings
    ) -> None:
        self.persona = persona
        self._around = around
        plan = around.plan
        self._trouble = (
            Trouble() if persona.fault is None else plan.faults[persona.fault]
        )
        self._rng = random_of(plan, persona.index, "agent")
        self._flash = Flash(around.folder / persona.agent, around.unpacked)
        self._line = Line(
            persona.agent,
            target,
            hear=self._hear,
            changed=self._link_changed,
            bytes_per_s=(
                self._trouble.bytes_per_s if persona.fault is Fault.SLOW else None
            ),
        )
        self._crashes_left = 0
        self._crash = asyncio.Event()
        self._served = BEFORE
        self._pretended = self._pretend(BEFORE)
        self._make_loops()

    @property
    def up(self) -> bool:
        """Whether it is connected."""
        return self._line.up

    @property
    def heard_bytes(self) -> int:
        """What has come to it."""
        return self._line.heard_bytes

    async def run(self, connect_after_s: float) -> None:
        """Be an agent, until cancelled."""
        self._flash.prepare()
        self._flash.save(Slots(MODEL, active=BEFORE))
        self._befall()
        await asyncio.sleep(connect_after_s)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._line.run())
            tasks.create_task(self._live())
            if self.persona.fault is Fault.OFFLINE:
                tasks.create_task(self._lose_line())
            elif self.persona.fault is Fault.FULL_DISK and self._trouble.for_s:
                tasks.create_task(self._free_disk())

    def slot(self) -> SlotReport:
        """What it says of its model."""
        slots = self._updates.slots.get(MODEL, Slots(MODEL))
        now_s = self._around.clock.monotonic()
        return slots.report().model_copy(
            update={"health": self._pretended.until(now_s)}
        )

    # --- a device's life ------------------------------------------------------------

    async def _live(self) -> None:
        """The process of an agent, started again whenever it crashes."""
        while True:
            self._crash.clear()
            self._make_loops()
            self._updates.start_with(self._flash.slots())
            if self._line.up:
                self._link_changed(True)
            async with asyncio.TaskGroup() as process:
                loops = [
                    process.create_task(self._updates.run()),
                    process.create_task(self._reporting.run()),
                ]
                await self._crash.wait()
                for loop in loops:
                    loop.cancel()
            await asyncio.sleep(REBOOT_S)

    def _make_loops(self) -> None:
        self._reporting = Reporting(
            agent=self.persona.agent,
            link=self._line,
            report=self._report,
            every_s=REPORT_EVERY_S,
            rng=self._rng,
        )
        self._updates = Updates(
            agent=self.persona.agent,
            link=self._line,
            store=self._flash,
            trusted=self._around.trusted,
            settings=UpdateSettings(
                window=PULL_WINDOW, timeout_s=TIMEOUT_S, poll_every_s=POLL_EVERY_S
            ),
            try_out=self._try_out,
            load=self._load,
            swap=self._swap,
            changed=self._changed,
            rng=self._rng,
        )

    def _befall(self) -> None:
        trouble = self._trouble
        match self.persona.fault:
            case Fault.FULL_DISK:
                self._flash.free = trouble.free_bytes
            case Fault.BAD_FLASH:
                self._flash.damages = trouble.times or -1
            case Fault.CRASH_LOOP:
                self._crashes_left = trouble.times or -1
            case _:
                pass

    async def _lose_line(self) -> None:
        """Be away from the middle of the first pull on."""
        until_bytes = self._trouble.after_share * self._around.plan.model_bytes
        # Without an event of its own: looking five times a second costs nothing.
        while self._line.heard_bytes < until_bytes:
            await asyncio.sleep(LOOK_EVERY_S)
        await self._line.fail_for(self._trouble.for_s)

    async def _free_disk(self) -> None:
        while self._updates.slots.get(MODEL, Slots(MODEL)).generation == 0:
            await asyncio.sleep(LOOK_EVERY_S)
        await asyncio.sleep(self._trouble.for_s)
        self._flash.free = Flash(self._around.folder, self._around.unpacked).free

    # --- what an agent's other parts would do -----------------------------------------

    def _pretend(self, version: str) -> Pretended:
        plan = self._around.plan
        return Pretended(
            quality=plan.after if version == AFTER else plan.before,
            rng=random_of(plan, self.persona.index, f"version {version}"),
            requests_per_s=plan.requests_per_s,
            audit_share=plan.audit_share,
            slowness=self.persona.slowness,
            since_s=self._around.clock.monotonic(),
        )

    async def _try_out(self, stored: StoredBundle) -> None:
        """Golden inputs take their time on the device."""
        await asyncio.sleep(self._rng.uniform(0.1, 0.4))

    async def _load(self, stored: StoredBundle) -> Served:
        return Served(
            manifest=stored.manifest, runner=_NoRunner(), input_shapes={}, rule=None
        )

    async def _swap(self, served: Served) -> None:
        self._served = served.manifest.version
        self._pretended = self._pretend(self._served)
        if self._served == AFTER and self._crashes_left:
            self._crashes_left -= 1
            self._crash.set()

    def _report(self) -> Report:
        return Report(
            agent=self.persona.agent,
            at_ms=self._around.clock.wall_ms(),
            slots=[self.slot()],
            facts=dict(self.persona.facts),
        )

    def _changed(self) -> None:
        self._reporting.report_now()
        self._around.told(self.persona.agent, self.slot())

    def _link_changed(self, up: bool) -> None:  # noqa: FBT001 - a link's word
        self._updates.link_changed(up)
        self._reporting.link_changed(up)

    def _hear(self, topic: str, payload: bytes) -> None:
        if topic == topics.blobs(self.persona.agent):
            self._updates.on_blob(payload)
        elif topic == topics.commands(self.persona.agent):
            self._updates.look_now()


class _NoRunner:
    """A model that is only pretended."""

    predicted_ms = 0.0

    async def infer(self, inputs: object) -> dict[str, object]:
        raise NotImplementedError

    async def close(self) -> None:
        """Nothing was opened."""
