"""A version is pushed, and whoever takes part in it is killed: the agent, the fleet, RabbitMQ."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Sequence

from edge_agent.core.slots import State
from fleet.core.rollouts import AgentState, RolloutState
from tests.faults.pushing import Pushing, said, slots_of, versions_of
from tests.faults.row import Row
from tests.faults.stage import AGENTS, Gateway, Stage

# Where an install is caught in turn; None: anywhere, also while the agent starts.
PHASES = (State.PULLING, State.TESTING, State.PROBATION, None)
ENDS = (State.SWAPPED, State.RETURNED, State.REFUSED)
# A pull takes some seconds.
SLOWLY = ("--rate", "150kB")
PHASE_S = 15.0
# Nothing that they could judge by is spilled here, and machines are busy.
UNASKED = ("--gate=agreement=off", "--gate=promise=off", "--gate=latency=off")
KILLS_OF_AGENT = 200
ENOUGH = 20
# Of the fleet's daemon, a rollout.
KILLS = 6
# RabbitMQ 3.10 may take its MQTT clients up to 100 s after it was killed.
UPDATED_WITHIN_S = 240.0


async def pushing(stage: Stage, agents: int) -> tuple[Pushing, list[Gateway]]:
    """A fleet with so many agents."""
    fleet = Pushing(stage)
    await fleet.begin()
    return fleet, [await fleet.gateway(name) for name in AGENTS[:agents]]


async def agent_killed(stage: Stage) -> None:
    fleet, (gateway,) = await pushing(stage, 1)
    caught: Counter[str] = Counter()
    served: Counter[str] = Counter()
    ended: Counter[str] = Counter()
    newest, generation = 1, 0
    async with stage.fault("the agent is killed while it installs"):
        for number in range(stage.n(KILLS_OF_AGENT)):
            progress = await fleet.progress(generation) if generation else None
            if progress is None or not progress.live:
                if progress is not None:
                    ended[progress.state.value] += 1
                newest += 1
                generation = await fleet.roll_out(
                    str(newest), "--agents", gateway.name, *SLOWLY
                )
            await _reaches(stage, gateway, PHASES[number % len(PHASES)], generation)
            caught[await _kill(stage, gateway)] += 1
            served[await fleet.one_good_model(gateway)] += 1
    # Left alone, it ends as it should, whatever lay about.
    generation = await fleet.roll_out(str(newest + 1), "--agents", gateway.name)
    over = await fleet.until_over(generation)
    assert over.state is RolloutState.DONE, over
    assert await fleet.one_good_model(gateway) == str(newest + 1)
    _is_tidy(gateway)
    await fleet.is_whole()
    stage.note_fault(
        f"killed in {dict(caught)}; rollouts ended {dict(ended)}; "
        f"{len(served)} versions served"
    )
    # A few kills may miss what lasts for a moment.
    wanted = {each.value for each in PHASES if each is not None}
    assert stage.n(KILLS_OF_AGENT) < ENOUGH or caught.keys() >= wanted, caught
    await stage.until_ended()


async def _reaches(
    stage: Stage, gateway: Gateway, phase: State | None, generation: int
) -> None:
    """Return at some moment of a phase, or once it will not come any more."""
    if phase is None:
        await asyncio.sleep(stage.random.uniform(0.0, 3.0))
        return
    give_up_s = asyncio.get_running_loop().time() + PHASE_S
    over = {(state, generation) for state in ENDS}
    while (now := await slots_of(gateway)) != (phase, generation):
        if now in over or asyncio.get_running_loop().time() > give_up_s:
            return
        await asyncio.sleep(0.01)
    # The fault itself: at any moment of the phase.
    await asyncio.sleep(stage.random.uniform(0.0, 0.4))


async def _kill(stage: Stage, gateway: Gateway) -> str:
    """Kill the agent, sometimes again before it is ready; gives what it was caught in."""
    now = await slots_of(gateway)
    before = gateway.restarts
    gateway.agent.signal(signal.SIGKILL)
    if stage.random.random() < 0.2:
        await stage.until(lambda: gateway.restarts > before)
        await asyncio.sleep(stage.random.uniform(0.0, 1.5))
        before = gateway.restarts
        gateway.agent.signal(signal.SIGKILL)
    await stage.until(lambda: gateway.restarts > before)
    await gateway.agent.ready()
    return "none" if now is None else now[0].value


def _is_tidy(gateway: Gateway) -> None:
    """Nothing is left of what was begun and not finished."""
    kept = [each.name for each in versions_of(gateway).iterdir() if each.is_dir()]
    assert len(kept) <= 2, kept
    parts = list((gateway.state_dir / "models" / ".parts").iterdir())
    assert not parts, parts


async def fleet_killed(stage: Stage) -> None:
    fleet, gateways = await pushing(stage, len(AGENTS))
    for version in _versions(stage):
        generation = await _in_waves(fleet, version)
        async with stage.fault(f"the fleet is killed while {version} is rolled out"):
            for _ in range(KILLS):
                # The fault itself: at any moment, and before it is up.
                await asyncio.sleep(stage.random.uniform(0.2, 3.0))
                fleet.daemon.signal(signal.SIGKILL)
        await _everybody_once(fleet, generation, gateways, version)
    await fleet.is_whole()
    await stage.until_ended()


async def broker_killed(stage: Stage) -> None:
    fleet, gateways = await pushing(stage, 2)
    for version in _versions(stage):
        generation = await fleet.roll_out(version, *SLOWLY, *_agents(gateways))
        async with stage.fault(f"RabbitMQ is killed while {version} is pulled"):
            await _reaches(stage, gateways[0], State.PULLING, generation)
            await stage.node.kill()
            for gateway in gateways:
                assert await fleet.one_good_model(gateway) != version
            await stage.node.start()
        await _everybody_once(fleet, generation, gateways, version)
    await fleet.is_whole()
    await stage.until_ended()


def _versions(stage: Stage) -> list[str]:
    return [str(number) for number in range(2, 2 + stage.n(10))]


def _agents(gateways: Sequence[Gateway]) -> tuple[str, str]:
    return "--agents", ",".join(each.name for each in gateways)


async def _in_waves(fleet: Pushing, version: str) -> int:
    waves = ("--agents", ",".join(AGENTS), "--waves", "1,2", "--soak", "1s")
    return await fleet.roll_out(version, *waves, *UNASKED)


async def _everybody_once(
    fleet: Pushing, generation: int, gateways: Sequence[Gateway], version: str
) -> None:
    """The rollout is done, in the waves that were ordered; nobody was exposed twice."""
    over = await fleet.until_over(generation, UPDATED_WITHIN_S)
    assert over.state is RolloutState.DONE, over
    assert {each.agent for each in over.agents} == {each.name for each in gateways}
    assert {each.state for each in over.agents} == {AgentState.UPDATED}, over
    if len(gateways) == len(AGENTS):
        waves = Counter(each.wave for each in over.agents)
        assert sorted(waves.values()) == [1, 1, len(AGENTS) - 2], waves
    for gateway in gateways:
        assert await fleet.one_good_model(gateway) == version
        exposed = said(gateway, "update_serves", version)
        assert exposed == 1, f"{gateway.name} took {version} {exposed} times"
        _is_tidy(gateway)


ROWS: tuple[Row, ...] = (
    Row(
        name="agent-killed-installing",
        fault="kill -9 of the agent while it pulls, tests, swaps and is on probation",
        must_hold="one verified model answers after each; then it ends as desired",
        run=agent_killed,
        # It may be killed twice before it answers again.
        most_gap_s=30.0,
        timeout_s=3600.0,
    ),
    Row(
        name="fleet-killed-rollout",
        fault="kill -9 of the fleet's daemon, again and again, during a rollout in waves",
        must_hold="the rollout ends done, wave after wave; no agent is exposed twice",
        run=fleet_killed,
        timeout_s=1200.0,
    ),
    Row(
        name="broker-killed-pulling",
        fault="kill -9 of RabbitMQ while agents pull a version",
        must_hold="the edge answers; pulls go on; the rollout ends done",
        run=broker_killed,
        timeout_s=1800.0,
    ),
)
