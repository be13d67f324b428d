"""Simulated agents in a fleet that is somebody else's. They only take part.

Whoever runs the fleet rolls out; nothing is started here but the agents, and nothing of
them stays at the broker: their sessions end with their connections.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from typing_extensions import override

from lifecycle.clock import SystemClock
from overspill.simulate.crew import Crew
from overspill.simulate.guests import Guests
from overspill.simulate.plan import Plan, cast
from overspill.simulate.run import CONNECT_TIMEOUT_S, LOOK_EVERY_S, NotConnected, Scene
from overspill.simulate.tally import SETTLED, Became, Fate, Tally, fate_of_state
from overspill.tasks import alongside

# Of none of them: what keeps one away keeps all away.
NOBODY_S: Final = 20.0


@dataclass(slots=True)
class VisitTally(Tally):
    """What became of visitors, by whatever rollouts there are.

    Attributes:
        version: that is waited for; empty: what the fleet desires, whichever it is.
    """

    @override
    def _fate(self, slot: Mapping[str, Any], at_s: float) -> Fate:
        if not slot["generation"]:
            return Fate(Became.UNREACHED)
        if slot["state"] in {"idle", "swapped"}:
            there = self.version in {"", slot["active"]}
            return Fate(Became.CONVERGED, at_s) if there else Fate(Became.UNREACHED)
        fate = fate_of_state(slot, at_s)
        if fate.became in SETTLED and self.version not in {"", slot["staged"]}:
            return Fate(Became.UNREACHED)  # That was said of another version.
        return fate

    @property
    @override
    def settled(self) -> bool:
        return {self.of(each).became for each in self.personas} <= SETTLED


class Visit:
    """One visit; `scene` may be shown meanwhile, and tells what came of it.

    Args:
        plan: how many, their faults, and how good versions are.
        guests: who, and where.
        folder: everything that is written.
        processes: that hold agents.
        to: the version that all must come to; None: it lasts until it is cancelled.
        within_s: they may take so long for it.
    """

    def __init__(
        self,
        plan: Plan,
        guests: Guests,
        folder: Path,
        *,
        processes: int,
        to: str | None,
        within_s: float,
    ) -> None:
        self._plan = plan
        self._guests = guests
        self._folder = folder
        self._processes = processes
        self._to = to
        self._within_s = within_s
        self._clock = SystemClock()
        self._began_s = self._clock.monotonic()
        names = [each.partition("//")[2].partition(":")[0] for each in guests.urls]
        self.scene = Scene(VisitTally(cast(plan, names), to or ""))

    async def run(self) -> None:
        """Be there, until the version has come to all, or until cancelled.

        Raises:
            ProgramEnded: a process of the agents did.
            NotConnected: the broker does not let them in.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        async with Crew(
            self._plan,
            self._guests.urls,
            folder=self._folder,
            provisioned=self._guests.serving,
            root=self._guests.root,
            processes=self._processes,
            said=self._hear,
            model=self._guests.model,
            visit=True,
        ) as crew:
            await alongside(self._stay(), crew.listen())

    @property
    def failures(self) -> list[str]:
        """What is wrong, in sentences; nothing when nothing was waited for, or it came."""
        tally = self.scene.tally
        if self._to is None or tally.settled:
            return []
        late = [
            f"{n} {each}" for each, n in tally.counts().items() if each not in SETTLED
        ]
        wanted = f"{self._guests.model} {self._to} within {self._within_s:.0f} s"
        return [f"not all have come to {wanted}: {', '.join(late)}"]

    def _hear(self, process: int, said: Mapping[str, Any]) -> None:
        self.scene.tally.take(process, said, self._since_s())

    def _since_s(self) -> float:
        return self._clock.monotonic() - self._began_s

    async def _stay(self) -> None:
        self.scene.headline = f"agents connect to {self._guests.broker}"
        await self._connect()
        waits = "" if self._to is None else f", until all serve {self._to}"
        self.scene.headline = f"{self._guests.model} on {self._guests.broker}{waits}"
        self._began_s = self._clock.monotonic()
        while self._to is None or not self.scene.tally.settled:
            if self._to is not None and self._since_s() > self._within_s:
                return
            await asyncio.sleep(LOOK_EVERY_S)

    async def _connect(self) -> None:
        tally = self.scene.tally
        while not tally.all_connected:
            connected = sum(tally.connected.values())
            broken = next(
                (f for f in tally.fates.values() if f.became is Became.BROKEN), None
            )
            if broken is not None:
                raise NotConnected(
                    f"an agent of the simulation failed: {broken.reason}"
                )
            if self._since_s() > (CONNECT_TIMEOUT_S if connected else NOBODY_S):
                why = (
                    "; ".join(sorted(set(tally.down.values()))) or "no reason is known"
                )
                raise NotConnected(
                    f"{connected} of {self._plan.agents} agents were connected to "
                    f"{self._guests.broker} after {self._since_s():.0f} s: {why}"
                )
            await asyncio.sleep(LOOK_EVERY_S)
