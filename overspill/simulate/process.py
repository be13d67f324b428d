"""What a simulated agent has in memory, from one start to the next crash.

The loops are the agent's own. Pretended are the model, the requests and the disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Final

from broker.messages import Report, SlotReport
from bundle.trust.moment import RELEASED_S
from edge_agent.adapters.day_file import DayFile
from edge_agent.adapters.mqtt_source import MqttSource
from edge_agent.core.fit import Device
from edge_agent.core.served import Served
from edge_agent.loops.metering import Metering
from edge_agent.loops.probation import Probation
from edge_agent.loops.pulling import Puller
from edge_agent.loops.reporting import Reporting
from edge_agent.loops.slot_book import SlotBook
from edge_agent.loops.update_ports import Here
from edge_agent.loops.updates import Updates, UpdateSettings
from overspill.simulate.flash import Flash, FlashPulls
from overspill.simulate.line import Line
from overspill.simulate.plan import Persona, random_of
from overspill.simulate.pretending import PretendedLoading, PretendedShadows
from overspill.simulate.quality import PretendedAccounts
from overspill.simulate.surroundings import Surroundings
from overspill.simulate.trust import SharedTrust

REPORT_EVERY_S: Final = 30.0
POLL_EVERY_S: Final = 30.0
# After an outage all agents look within this share of what they took to come back.
SPREAD_SHARE: Final = 1 / 3
DAY_FILE: Final = "day.json"


@dataclass(frozen=True, slots=True)
class Body:
    """What of an agent outlives its process.

    Attributes:
        persona: who it is.
        flash: its disk.
        line: its connection.
        source: the registry at the other end of it.
        clock_s: what it takes the time to be, in seconds since 1970.
        served: told which version serves.
    """

    persona: Persona
    flash: Flash
    line: Line
    source: MqttSource
    clock_s: Callable[[], float]
    served: Callable[[str], None]


class AgentProcess:
    """The loops of one agent. Cancelled without ceremony, as a crash is."""

    def __init__(self, body: Body, around: Surroundings) -> None:
        plan, persona = around.plan, body.persona
        rng = random_of(plan, persona.index, "process")
        now_s = around.clock.monotonic
        self._body = body
        self._around = around
        self.slots = SlotBook(body.flash, self._changed)
        self._accounts = PretendedAccounts(
            lambda version: plan.before if version == around.before else plan.after,
            rng=random_of(plan, persona.index, "requests"),
            requests_per_s=plan.requests_per_s,
            audit_share=plan.audit_share,
            slowness=persona.slowness,
            now_s=now_s,
        )
        self._loading = PretendedLoading(body.flash, self._accounts, self._swap, rng)
        self._probation = Probation(
            slots=self.slots,
            store=body.flash,
            accounts=self._accounts,
            load=self._loading.load,
            swap=self._swap,
            remove=self._remove,
            now_s=now_s,
        )
        day = DayFile(body.flash.parts / DAY_FILE)
        puller = Puller(
            [body.source],
            body.flash.parts,
            metering=Metering(day, local_now_s=body.clock_s),
            rng=rng,
            sharing=body.source,
        )
        self.updates = Updates(
            agent=persona.agent,
            sources=[body.source],
            store=body.flash,
            slots=self.slots,
            trust=SharedTrust(around.verifier, body.source, body.clock_s),
            pulls=FlashPulls(puller, body.flash),
            probation=self._probation,
            shadows=PretendedShadows(around.model, self._accounts, around.clock),
            here=Here(device=self._device, local_now=self._local_now),
            settings=UpdateSettings(
                poll_every_s=POLL_EVERY_S, spread_s=SPREAD_SHARE * plan.reconnect_s
            ),
            try_out=self._loading.try_out,
            rng=rng,
        )
        self._reporting = Reporting(
            agent=persona.agent,
            link=body.line,
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
            self._changed()
            if self._body.line.up:
                self.link_changed(up=True)

    def link_changed(self, *, up: bool) -> None:
        """The link came up, or was lost."""
        self.updates.link_changed(up)
        self._reporting.link_changed(up)

    def _changed(self) -> None:
        self._reporting.report_now()
        self._around.told(self._body.persona.agent, self._slot())

    def _slot(self) -> SlotReport:
        slots = self.slots.of(self._around.model)
        now, before = self._accounts.report(slots, self._around.clock.monotonic())
        return slots.report().model_copy(update={"health": now, "before": before})

    def _report(self) -> Report:
        body = self._body
        clock_s = body.clock_s()
        return Report(
            agent=body.persona.agent,
            at_ms=max(0, round(1000 * clock_s)),
            slots=[self._slot()],
            facts={
                **body.persona.facts,
                "free_disk_mb": str(body.flash.free_bytes() // 1024**2),
                "clock": "ok" if clock_s >= RELEASED_S else "floor",
            },
        )

    async def _swap(self, served: Served) -> None:
        version = served.manifest.version
        self._accounts.swap(self._around.model, version)
        self._body.served(version)

    async def _remove(self, model: str) -> None:
        self._accounts.swap(model, None)

    def _device(self) -> Device:
        facts = self._body.persona.facts
        return Device(
            machine=facts["machine"],
            board=facts["board"],
            runtime=facts["runtime"],
            memory_mb=int(facts["memory_mb"]),
        )

    def _local_now(self) -> datetime | None:
        now_s = self._body.clock_s()
        if now_s < RELEASED_S:
            return None
        minutes = int(self._body.persona.facts["utc_offset_min"])
        return datetime.fromtimestamp(now_s, timezone(timedelta(minutes=minutes)))
