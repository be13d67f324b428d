"""One simulated agent: the real loops of an edge agent around a pretended device."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from random import Random
from typing import Final

from typing_extensions import override

from broker import topics
from broker.messages import Report, SlotReport, UpdatePolicy
from broker.mqtt.target import MqttTarget
from bundle.seal import Seal
from bundle.trust.moment import RELEASED_S
from edge_agent.adapters.day_file import DayFile
from edge_agent.adapters.model_store import StoredBundle
from edge_agent.adapters.mqtt_source import MqttSource
from edge_agent.core.answers import Array
from edge_agent.core.fit import Device
from edge_agent.core.served import Served
from edge_agent.core.slots import Slots, State
from edge_agent.loops.fetching import FetchSettings
from edge_agent.loops.loading import Loading, LoadingSettings
from edge_agent.loops.metering import Metering
from edge_agent.loops.probation import Probation
from edge_agent.loops.pulling import Puller, PullSettings
from edge_agent.loops.reporting import Reporting
from edge_agent.loops.slot_book import SlotBook
from edge_agent.loops.updates import Here, Updates, UpdateSettings
from lifecycle.clock import Clock
from overspill.simulate.flash import PLENTY_BYTES, Flash, FlashPulls, Unpacked
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
from overspill.simulate.quality import PretendedAccounts
from overspill.simulate.trust import SharedTrust, Verifier

REPORT_EVERY_S: Final = 30.0
POLL_EVERY_S: Final = 30.0
# After an outage all agents look within so long, not at once.
SPREAD_S: Final = 5.0
TIMEOUT_S: Final = 20.0
LOOK_EVERY_S: Final = 0.2
REBOOT_S: Final = 1.0
# Golden inputs take their time on a device.
TRIAL_S: Final = (0.1, 0.4)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all simulated agents of one process share.

    Attributes:
        plan: of the simulation.
        folder: where unfinished pulls lie.
        unpacked: bundles that were unpacked.
        provisioned: what agents come with.
        verifier: finds out what was signed.
        clock: of the machine.
        told: called with an agent's name and its slot, at each change.
    """

    plan: Plan
    folder: Path
    unpacked: Unpacked
    provisioned: Seal
    verifier: Verifier
    clock: Clock
    told: Callable[[str, SlotReport], None]


class SimulatedAgent:
    """An agent from its first connection until it is cancelled."""

    def __init__(
        self, persona: Persona, target: MqttTarget, around: Surroundings
    ) -> None:
        plan = around.plan
        trouble = Trouble() if persona.fault is None else plan.faults[persona.fault]
        self.persona = persona
        self._around = around
        self._trouble = trouble
        self._rng = random_of(plan, persona.index, "agent")
        self._flash = Flash(
            around.folder / persona.agent, around.unpacked, around.provisioned
        )
        self._line = Line(
            persona.agent,
            target,
            hear=self._hear,
            changed=self._link_changed,
            bytes_per_s=trouble.bytes_per_s if persona.fault is Fault.SLOW else None,
        )
        self._source = MqttSource(
            agent=persona.agent, link=self._line, timeout_s=TIMEOUT_S
        )
        self._crashes_left = 0
        self._crash = asyncio.Event()
        self._process: _Process | None = None

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

    async def _live(self) -> None:
        """The process of an agent, started again whenever it crashes."""
        while True:
            self._crash.clear()
            self._process = _Process(self)
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
            case Fault.FULL_DISK:
                self._flash.free = self._trouble.free_bytes
            case Fault.BAD_FLASH:
                self._flash.damages = self._trouble.times or -1
            case Fault.CRASH_LOOP:
                self._crashes_left = self._trouble.times or -1
            case _:
                pass

    async def _lose_line(self) -> None:
        """Be away from the middle of the first pull on."""
        due = self._trouble.after_share * self._around.plan.model_bytes
        while self._line.heard_bytes < due:  # noqa: ASYNC110 - seldom, and cheap
            await asyncio.sleep(LOOK_EVERY_S)
        await self._line.fail_for(self._trouble.for_s)

    async def _free_disk(self) -> None:
        """Somebody makes room, a while after it was missing."""
        while self._slots().state is not State.WAITING:  # noqa: ASYNC110 - as above
            await asyncio.sleep(LOOK_EVERY_S)
        await asyncio.sleep(self._trouble.for_s)
        self._flash.free = PLENTY_BYTES

    def _slots(self) -> Slots:
        return Slots(MODEL) if self._process is None else self._process.slots.of(MODEL)

    def served(self, version: str) -> None:
        """A version serves from now on; it may end the process."""
        if version == AFTER and self._crashes_left:
            self._crashes_left -= 1
            self._crash.set()

    # --- its line ---------------------------------------------------------------------

    def _link_changed(self, up: bool) -> None:
        if self._process is not None:
            self._process.link_changed(up=up)

    def _hear(self, topic: str, payload: bytes) -> None:
        if self._source.on_message(topic, payload) or self._process is None:
            return
        if topic == topics.commands(self.persona.agent):
            self._process.updates.look_now()


class _Process:
    """What an agent has in memory, from one start to the next crash."""

    def __init__(self, agent: SimulatedAgent) -> None:
        self._agent = agent
        self._around = agent._around  # noqa: SLF001 - a part of it
        self._flash, self._line = agent._flash, agent._line  # noqa: SLF001 - as above
        plan, persona = self._around.plan, agent.persona
        rng = random_of(plan, persona.index, "process")
        clock_s = self._clock_s
        self.slots = SlotBook(self._flash, self._changed)
        self._accounts = PretendedAccounts(
            lambda version: plan.after if version == AFTER else plan.before,
            rng=random_of(plan, persona.index, "requests"),
            requests_per_s=plan.requests_per_s,
            audit_share=plan.audit_share,
            slowness=persona.slowness,
            now_s=self._around.clock.monotonic,
        )
        self._loading = _Pretending(self._flash, self._accounts, self._swap, rng)
        self._probation = Probation(
            slots=self.slots,
            store=self._flash,
            accounts=self._accounts,
            load=self._loading.load,
            swap=self._swap,
            remove=self._remove,
            now_s=self._around.clock.monotonic,
        )
        source = agent._source  # noqa: SLF001 - as above
        self.updates = Updates(
            agent=persona.agent,
            sources=[source],
            store=self._flash,
            slots=self.slots,
            trust=SharedTrust(self._around.verifier, source, clock_s),
            pulls=FlashPulls(_puller(source, self._flash, rng, clock_s), self._flash),
            probation=self._probation,
            shadows=_Beside(self._accounts, self._around.clock),
            here=Here(device=lambda: _device(persona), local_now=self._local_now),
            settings=UpdateSettings(poll_every_s=POLL_EVERY_S, spread_s=SPREAD_S),
            try_out=self._loading.try_out,
            serve=self._loading.serve,
            rng=rng,
        )
        self._reporting = Reporting(
            agent=persona.agent,
            link=self._line,
            report=self._report,
            every_s=REPORT_EVERY_S,
            rng=rng,
        )

    async def run(self) -> None:
        """Be the process, until cancelled."""
        self.slots.start_with(await self._loading.restore(()))
        await self._probation.restore()
        async with asyncio.TaskGroup() as loops:
            loops.create_task(self.updates.run())
            loops.create_task(self._probation.run())
            loops.create_task(self._reporting.run())
            if self._line.up:
                self.link_changed(up=True)

    def link_changed(self, *, up: bool) -> None:
        """The link came up, or was lost."""
        self.updates.link_changed(up)
        self._reporting.link_changed(up)

    def _changed(self) -> None:
        self._reporting.report_now()
        self._around.told(self._agent.persona.agent, self._slot())

    def _slot(self) -> SlotReport:
        slots = self.slots.of(MODEL)
        now, before = self._accounts.report(slots, self._around.clock.monotonic())
        return slots.report().model_copy(update={"health": now, "before": before})

    def _report(self) -> Report:
        clock = "ok" if self._clock_s() >= RELEASED_S else "floor"
        free_mb = self._flash.free_bytes() // 1024**2
        return Report(
            agent=self._agent.persona.agent,
            at_ms=max(0, round(1000 * self._clock_s())),
            slots=[self._slot()],
            facts={
                **self._agent.persona.facts,
                "free_disk_mb": str(free_mb),
                "clock": clock,
            },
        )

    async def _swap(self, served: Served) -> None:
        version = served.manifest.version
        self._accounts.swap(MODEL, version)
        self._agent.served(version)

    async def _remove(self, model: str) -> None:
        self._accounts.swap(model, None)

    def _clock_s(self) -> float:
        """What the device takes the time to be."""
        ahead_s = 0.0
        if self._agent.persona.fault is Fault.WRONG_CLOCK:
            ahead_s = self._agent._trouble.ahead_s  # noqa: SLF001 - as above
        return self._around.clock.wall_ms() / 1000.0 + ahead_s

    def _local_now(self) -> datetime | None:
        now_s = self._clock_s()
        if now_s < RELEASED_S:
            return None
        offset = timedelta(minutes=int(self._agent.persona.facts["utc_offset_min"]))
        return datetime.fromtimestamp(now_s, timezone(offset))


class _Pretending(Loading):
    """Loads no model, and tries none out: the time passes."""

    def __init__(
        self,
        flash: Flash,
        accounts: PretendedAccounts,
        swap: Callable[[Served], object],
        rng: Random,
    ) -> None:
        settings = LoadingSettings(
            threads=1, infer_queue=1, trial_timeout_s=1.0, trial_memory_mb=1
        )
        super().__init__(store=flash, settings=settings, accounts=accounts, swap=swap)
        self._draws = rng

    @override
    async def try_out(
        self, stored: StoredBundle, before: StoredBundle | None, policy: UpdatePolicy
    ) -> object:
        await asyncio.sleep(self._draws.uniform(*TRIAL_S))
        return None

    @override
    async def load(self, stored: StoredBundle) -> Served:
        return Served(
            manifest=stored.manifest, runner=_NoRunner(), input_shapes={}, rule=None
        )


class _NoRunner:
    """A model that is only pretended."""

    predicted_ms = 0.0

    async def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Not asked: requests are pretended too."""
        raise NotImplementedError

    async def close(self) -> None:
        """Nothing was opened."""


class _Beside:
    """Candidates in the shadow of what serves."""

    def __init__(self, accounts: PretendedAccounts, clock: Clock) -> None:
        self._accounts = accounts
        self._clock = clock

    async def start(self, stored: StoredBundle) -> None:
        """Ask it too from now on."""
        version = stored.manifest.version
        self._accounts.beside = version
        self._accounts.begin(MODEL, version, self._clock.monotonic())

    async def stop(self, model: str) -> None:  # noqa: ARG002 - there is one
        """Ask it no more."""
        self._accounts.beside = None


def _puller(
    source: MqttSource, flash: Flash, rng: Random, clock_s: Callable[[], float]
) -> Puller:
    day = DayFile(flash.parts / "day.json")
    return Puller(
        [source],
        flash.parts,
        metering=Metering(day, local_now_s=clock_s),
        rng=rng,
        settings=PullSettings(fetch=FetchSettings()),
        sharing=source,
    )


def _device(persona: Persona) -> Device:
    facts = persona.facts
    return Device(
        machine=facts["machine"],
        board=facts["board"],
        runtime=facts["runtime"],
        memory_mb=int(facts["memory_mb"]),
    )
