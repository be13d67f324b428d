"""One simulation from its broker to its table."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from lifecycle.clock import SystemClock
from overspill.program import ProgramEnded
from overspill.simulate.bundles import write_bundles
from overspill.simulate.costs import processor_s, resident_mb
from overspill.simulate.crew import Crew
from overspill.simulate.operator import Operator, Standing
from overspill.simulate.plan import AFTER, BEFORE, MODEL, Plan, cast, name_of
from overspill.simulate.stage import NODE_TIMEOUT_S, Stage
from overspill.simulate.tally import SETTLED, Became, Tally, compare
from overspill.tasks import alongside

LOOK_EVERY_S: Final = 0.2
ASK_EVERY_S: Final = 1.0
CONNECT_TIMEOUT_S: Final = 120.0
FLEET_LEARNS_S: Final = 20.0
# After the end of a rollout: what agents say of themselves may come a moment later.
GRACE_S: Final = 5.0


class NotConnected(Exception):
    """The agents did not come up."""


@dataclass(slots=True)
class Scene:
    """All that is shown while it runs.

    Attributes:
        headline: what is being done.
        parts: how far each part of the stage has come.
        tally: of the agents.
        standing: of the rollout, as the fleet says.
        broker_mb, broker_peak_mb: resident memory of RabbitMQ now, and at its highest.
        broker_lost_s: processor time of the broker that an outage killed.
        back_s: how long after an outage all agents were connected again.
    """

    tally: Tally
    headline: str = "starting"
    standing: Standing | None = None
    parts: dict[str, str] = field(default_factory=dict)
    broker_mb: float = 0.0
    broker_peak_mb: float = 0.0
    broker_lost_s: float = 0.0
    back_s: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a simulation.

    Attributes:
        plan: of it.
        tally: of its agents.
        standing: of the rollout at the end, as the fleet says.
        start_s: until the stage was ready.
        connect_s: until all agents were connected and known to the fleet.
        told_s: how long `overspill rollout start` took.
        rollout_s: from its start until the last agent settled, or the time was up.
        broker_rest_mb, broker_connected_mb, broker_peak_mb: resident memory of RabbitMQ
            before the agents came, with all of them connected, and at its highest.
        agents_mb: resident memory of all processes that hold agents.
        heard_bytes: what came to the agents since the rollout began.
        back_s: how long after an outage of the broker all agents were connected again.
        processor_s: what each part used of the processor during the rollout.
        disagreements: agents of whom the fleet knows something else than they do.
    """

    plan: Plan
    tally: Tally
    standing: Standing | None
    start_s: float
    connect_s: float
    told_s: float
    rollout_s: float
    broker_rest_mb: float
    broker_connected_mb: float
    broker_peak_mb: float
    agents_mb: float
    heard_bytes: int
    back_s: float | None
    processor_s: Mapping[str, float]
    disagreements: tuple[str, ...]

    @property
    def last_s(self) -> float:
        """When the last agent settled; the whole time if some have not."""
        if not self.tally.settled:
            return self.rollout_s
        return max((row.last_s or 0.0 for row in self.tally.rows()), default=0.0)

    @property
    def failures(self) -> list[str]:
        """What is wrong, in sentences; nothing when it went as it should."""
        found = []
        if not self.tally.settled:
            counts = self.tally.counts()
            late = [f"{n} {each}" for each, n in counts.items() if each not in SETTLED]
            rollout = "" if self.standing is None else f"{self.standing.state}; "
            found.append(
                f"not settled after {self.rollout_s:.0f} s: the rollout is {rollout}"
                f"{', '.join(late) or 'every agent has settled'}"
            )
        if self.disagreements:
            found.append(
                f"the fleet does not know what {len(self.disagreements)} agents serve, "
                f"such as {self.disagreements[0]}"
            )
        return found


@dataclass(frozen=True, slots=True)
class Options:
    """How a simulation is carried out.

    Attributes:
        workers: members of the pool.
        processes: that hold agents.
        within_s: the rollout may take so long.
    """

    workers: int = 1
    processes: int = 2
    within_s: float = 300.0


class Simulation:
    """One simulation on its way; `scene` may be shown meanwhile.

    Args:
        plan: of it.
        options: how it is carried out.
        folder: everything it writes.
        then: called with what came of it while all still runs.
    """

    def __init__(
        self,
        plan: Plan,
        options: Options,
        folder: Path,
        then: Callable[[Outcome, Stage], Awaitable[None]] | None = None,
    ) -> None:
        self._plan = plan
        self._options = options
        self._folder = folder
        self._then = then
        self._clock = SystemClock()
        self._began_s = 0.0
        self.scene = Scene(Tally(cast(plan), AFTER))

    async def run(self) -> Outcome:
        """Do all of it.

        Raises:
            RabbitMissing, NodeError: there is no broker to be had.
            ProgramEnded, CommandFailed: a part of it failed.
            NotConnected: the agents did not come up.
        """
        scene, began_s = self.scene, self._clock.monotonic()
        bundles = await asyncio.to_thread(
            write_bundles, self._plan, self._folder / "bundles"
        )
        stage = Stage(
            self._folder,
            self._plan,
            bundles,
            workers=self._options.workers,
            changed=scene.parts.__setitem__,
        )
        scene.parts.update(dict.fromkeys(stage.parts, "waiting"))
        scene.headline = "starting the broker, the pool and the fleet"
        async with stage:
            start_s = self._clock.monotonic() - began_s
            urls = [
                stage.node.mqtt_url(name_of(index))
                for index in range(self._plan.agents)
            ]
            self._began_s = self._clock.monotonic()
            async with Crew(
                self._plan,
                urls,
                folder=stage.logs,
                provisioned=bundles[0],
                root=stage.root,
                processes=self._options.processes,
                said=self._hear,
            ) as crew:
                outcome = await alongside(
                    self._perform(stage, crew, start_s),
                    crew.listen(),
                    self._sample(stage),
                    self._take_broker_away(stage),
                    _until_one_died(stage),
                )
                scene.headline = "stopping"
        return outcome

    async def _perform(self, stage: Stage, crew: Crew, start_s: float) -> Outcome:
        outcome = await self._direct(stage, crew, start_s)
        if self._then is not None:
            self.scene.headline = "it stays up"
            await self._then(outcome, stage)
        return outcome

    def _hear(self, process: int, said: Mapping[str, Any]) -> None:
        self.scene.tally.take(process, said, self._since_s())

    def _since_s(self) -> float:
        return self._clock.monotonic() - self._began_s

    async def _direct(self, stage: Stage, crew: Crew, start_s: float) -> Outcome:
        """The order of events."""
        async with Operator(stage.home) as operator:
            rest_mb = resident_mb(stage.node.info.pid)
            self.scene.headline = "agents connect"
            await self._connect(stage, operator)
            connect_s, connected_mb = self._since_s(), self.scene.broker_mb
            heard = self._heard_bytes()
            self.scene.headline = f"rolling out version {AFTER}"
            spent_s = _spent(stage, crew)
            told_s = await self._start(stage)
            await self._watch(operator)
            rollout_s = self._since_s()
            heard = self._heard_bytes() - heard
            now_s = _spent(stage, crew)
            now_s["rabbitmq"] += self.scene.broker_lost_s
            spent_s = {name: now_s[name] - was_s for name, was_s in spent_s.items()}
            self.scene.headline = "asking the fleet what it knows"
            disagreements = await self._compare(operator)
        tally = self.scene.tally
        return Outcome(
            plan=self._plan,
            tally=tally,
            standing=self.scene.standing,
            start_s=start_s,
            connect_s=connect_s,
            told_s=told_s,
            rollout_s=rollout_s,
            broker_rest_mb=rest_mb,
            broker_connected_mb=connected_mb,
            broker_peak_mb=self.scene.broker_peak_mb,
            agents_mb=sum(tally.resident_mb.values()),
            heard_bytes=heard,
            back_s=self.scene.back_s,
            processor_s=spent_s,
            disagreements=disagreements,
        )

    def _heard_bytes(self) -> int:
        return sum(self.scene.tally.heard_bytes.values())

    async def _start(self, stage: Stage) -> float:
        """Start the rollout; gives how many seconds the command took."""
        words = self._plan.rollout.words()
        self._began_s = self._clock.monotonic()
        # Agents may be done before the command is.
        self.scene.tally.generation = 1
        started = await stage.operate("rollout", "start", MODEL, AFTER, *words)
        self.scene.tally.generation = int(started["generation"])
        return self._since_s()

    async def _watch(self, operator: Operator) -> None:
        """Look at the rollout until it and every agent have settled, or time is up."""
        tally, ended_s = self.scene.tally, math.inf
        while not tally.settled and self._since_s() < self._options.within_s:
            standing = await operator.standing(tally.generation or 0)
            self.scene.standing = standing
            tally.excluded = standing.excluded
            tally.by_fleet = standing.agents
            tally.ended = standing.state if standing.ended else None
            ended_s = min(ended_s, self._since_s()) if standing.ended else math.inf
            tally.given_up = self._since_s() - ended_s > GRACE_S
            await asyncio.sleep(LOOK_EVERY_S if standing.ended else ASK_EVERY_S)

    async def _connect(self, stage: Stage, operator: Operator) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                while not await self._all_known(operator):  # noqa: ASYNC110 - it asks
                    await asyncio.sleep(LOOK_EVERY_S)
        except TimeoutError:
            connected = sum(self.scene.tally.connected.values())
            raise NotConnected(
                f"{connected} of {self._plan.agents} agents were connected after "
                f"{CONNECT_TIMEOUT_S:g} s: try fewer with --agents, or look at "
                f"{stage.logs}"
            ) from None

    async def _all_known(self, operator: Operator) -> bool:
        tally = self.scene.tally
        broken = [each for each in tally.fates.values() if each.became is Became.BROKEN]
        if broken:
            raise NotConnected(f"an agent of the simulation failed: {broken[0].reason}")
        if not tally.all_connected:
            return False
        return len(await operator.serving()) >= self._plan.agents

    async def _compare(self, operator: Operator) -> tuple[str, ...]:
        give_up_s = self._clock.monotonic() + FLEET_LEARNS_S
        while True:
            wrong = compare(self.scene.tally, await operator.serving(), BEFORE)
            if not wrong or self._clock.monotonic() > give_up_s:
                return tuple(wrong)
            await asyncio.sleep(ASK_EVERY_S)

    async def _take_broker_away(self, stage: Stage) -> None:
        """Kill the broker on the way, and see all agents come back at once."""
        if not self._plan.outage_s:
            return
        tally = self.scene.tally
        third = self._plan.agents / 3
        await _until(lambda: tally.counts()[Became.CONVERGED] >= third)
        self.scene.broker_lost_s = processor_s([stage.node.info.pid])
        await stage.node.kill()
        await asyncio.sleep(self._plan.outage_s)
        await stage.node.start(NODE_TIMEOUT_S)
        began_s = self._clock.monotonic()
        await _until(lambda: tally.all_connected)
        self.scene.back_s = self._clock.monotonic() - began_s

    async def _sample(self, stage: Stage) -> None:
        while True:
            self.scene.broker_mb = resident_mb(stage.node.info.pid)
            self.scene.broker_peak_mb = max(
                self.scene.broker_peak_mb, self.scene.broker_mb
            )
            await asyncio.sleep(LOOK_EVERY_S)


def _spent(stage: Stage, crew: Crew) -> dict[str, float]:
    """Seconds of processor used so far, by part."""
    parts = {program.name: [program.pid] for program in stage.programs}
    parts |= {"rabbitmq": [stage.node.info.pid], "agents": crew.pids}
    return {name: processor_s(pids) for name, pids in parts.items()}


async def _until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - other processes say it, without an event
        await asyncio.sleep(LOOK_EVERY_S)


async def _until_one_died(stage: Stage) -> None:
    while True:
        dead = stage.died()
        if dead is not None:
            raise ProgramEnded(dead.obituary())
        await asyncio.sleep(LOOK_EVERY_S)
