"""The daemon's rollouts over a real database: restarts, locks, an absent broker."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path

import pytest

from broker.backoff import Backoff
from broker.codec import decode
from broker.messages import Desired, DesiredModel, SlotReport
from bundle import layout
from bundle.folder_tree import FolderTree
from bundle.source import NotThere
from bundle.trust.repository import Repository
from fleet.adapters.registry import Registry
from fleet.adapters.state.database import FleetDatabase
from fleet.adapters.trust_home import TrustHome
from fleet.core.devices import Device
from fleet.core.following import Now
from fleet.core.gates import Gate, GateKind
from fleet.core.rollouts import (
    Course,
    Rollout,
    RolloutState,
    Wave,
    WayBack,
    next_generation,
)
from fleet.loops.conducting import look
from fleet.loops.conductor import Conductor
from fleet.operator.rollouts import Rollouts
from lifecycle.clock import FakeClock
from tests.waiting import until

AGENTS = [f"a{each}" for each in range(20)]
SUCCESS = Gate(GateKind.SUCCESS, limit=0.2)


class Home:
    """A fleet's state, its clock and who was told; `conductor` is a new process each."""

    def __init__(self, folder: Path, database: FleetDatabase) -> None:
        self.path = folder / "f.db"
        self.database = database
        self.tree = FolderTree(folder / "registry")
        repository = Repository(self.tree, folder / "trust", lambda: 0.0)
        self.registry = Registry(
            self.tree, TrustHome(repository, folder / "trust", lambda _: None)
        )
        self.clock = FakeClock()
        self.told: list[str] = []

    async def hint(self, agents: Sequence[str]) -> None:
        self.told.extend(agents)

    def conductor(self) -> Conductor:
        return Conductor(
            self.database,
            self.registry,
            clock=self.clock,
            hint=self.hint,
            tick_s=0.05,
            backoff=Backoff(0.01, 0.02),
        )

    def reports(self, *agents: str, bad: bool = False) -> None:
        """These agents do what is desired of them and say so."""
        now_ms = self.clock.wall_ms()
        with self.database.writing() as ledger:
            known = ledger.devices_named(agents)
            for agent in agents:
                slots = tuple(said(each, bad=bad) for each in self.desired(agent))
                before = known.get(agent) or Device(
                    agent, now_ms, now_ms, (SlotReport(model="fashion", active="1"),)
                )
                slots = slots or before.slots
                ledger.keep_device(replace(before, last_seen_ms=now_ms, slots=slots))

    def start(self, version: str = "2", **more: object) -> Rollout:
        with self.database.writing() as ledger:
            rollout = Rollout(
                next_generation(ledger.rollouts(), ()),
                "fashion",
                version,
                self.clock.wall_ms(),
                **more,  # type: ignore[arg-type]  # the fields of a rollout
            )
            ledger.keep_rollout(rollout)
        return rollout

    def desired(self, agent: str) -> list[DesiredModel]:
        try:
            data = self.tree.read(layout.desired(agent), max_bytes=100_000)
        except NotThere:
            return []
        (document,) = decode(data, Desired).items
        return list(document.models)

    def versions(self) -> dict[str, str]:
        return {agent: each.version for agent in AGENTS for each in self.desired(agent)}

    def course(self, rollout: Rollout) -> Course:
        with self.database.reading() as ledger:
            return ledger.courses([rollout])[rollout.generation]

    def kinds(self, rollout: Rollout) -> list[str]:
        with self.database.reading() as ledger:
            return [each.kind for each in ledger.events(rollout.generation)]


def said(desired: DesiredModel, *, bad: bool) -> SlotReport:
    refused = bad and desired.version != "1"
    return SlotReport(
        model=desired.model,
        active="1" if refused else desired.version,
        state="returned" if refused else "swapped",
        reason="its errors are above 2 %" if refused else None,
        generation=desired.generation,
    )


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with FleetDatabase(tmp_path / "f.db", timeout_s=0.05) as database:
        yield Home(tmp_path, database)


@asynccontextmanager
async def running(conductor: Conductor) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(conductor.run())
        yield
        task.cancel()


async def test_a_good_version_goes_through_its_waves_and_a_restart_in_each(
    home: Home,
) -> None:
    home.reports(*AGENTS)
    one = home.start(waves=(Wave(count=2), Wave(share=0.5), Wave()), gates=(SUCCESS,))
    reached = []
    for _ in range(6):
        conductor = home.conductor()
        await conductor.look()
        reached.append(len(home.versions()))
        home.reports(*AGENTS)
    assert reached == [2, 10, 20, 20, 20, 20]
    assert home.course(one).state is RolloutState.DONE
    assert sorted(home.told) == sorted(AGENTS)
    assert home.kinds(one) == ["tell", "widen", "tell", "widen", "tell", "finish"]


async def test_a_bad_version_is_sent_back_by_itself_and_the_record_says_why(
    home: Home,
) -> None:
    home.reports(*AGENTS)
    one = home.start(
        waves=(Wave(count=8), Wave()),
        gates=(SUCCESS,),
        way_back=WayBack("1", 7),
        epoch=6,
    )
    conductor = home.conductor()
    for _ in range(5):
        await conductor.look()
        home.reports(*AGENTS, bad=True)
    course = home.course(one)
    assert course.state is RolloutState.ROLLED_BACK
    assert len(course.told) == 8
    assert {
        (each.version, each.epoch, each.generation)
        for agent in course.told
        for each in home.desired(agent)
    } == {("1", 7, one.generation + 1)}
    assert home.kinds(one) == ["tell", "roll_back", "all_back"]
    with home.database.reading() as ledger:
        entries = [(each.who, each.what) for each in ledger.audit()]
    assert ("conductor", "rollout.roll_back") in entries


async def test_a_locked_database_delays_a_rollout_and_loses_nothing(
    home: Home,
) -> None:
    home.reports(*AGENTS)
    conductor = home.conductor()
    async with running(conductor):
        with closing(sqlite3.connect(home.path)) as other:
            home.start()
            other.execute("BEGIN IMMEDIATE")
            conductor.heard(AGENTS)
            with pytest.raises(TimeoutError):
                await until(lambda: home.told, within_s=0.3)
            other.rollback()
        await until(lambda: len(home.told) == len(AGENTS))
    assert set(home.versions()) == set(AGENTS)


async def test_what_a_dead_command_left_undone_is_done_when_the_agent_reports(
    home: Home,
) -> None:
    home.reports("a0")
    conductor = home.conductor()
    # A command that died between its commit and the agent's document.
    home.start()
    look(home.database, Now(home.clock.wall_ms()))
    assert home.versions() == {}
    await conductor.look()
    assert home.versions() == {}
    conductor.heard(["a0"])
    await conductor.look()
    assert home.versions() == {"a0": "2"}


async def test_no_agent_is_blamed_for_an_hour_in_which_nobody_was_heard(
    home: Home,
) -> None:
    home.reports(*AGENTS)
    one = home.start(waves=(Wave(count=5), Wave()), gates=(SUCCESS,), lease_s=60)
    conductor = home.conductor()
    await conductor.look()
    home.clock.advance(3600)
    await conductor.look()
    assert home.course(one).state is RolloutState.RUNNING
    home.reports(*AGENTS[:1])
    conductor.heard(AGENTS[:1])
    await conductor.look()
    assert home.course(one).state is RolloutState.RUNNING
    home.reports(*AGENTS)
    conductor.heard(AGENTS)
    await conductor.look()
    assert len(home.course(one).told) == len(AGENTS)


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_clock_that_was_set_back_holds_no_rollout_up(
    home: Home, restarted: bool
) -> None:
    home.reports(*AGENTS)
    waves = (Wave(count=5, soak_s=60), Wave())
    one = home.start(waves=waves, gates=(SUCCESS,), lease_s=60)
    conductor = home.conductor()
    await conductor.look()
    home.reports(*AGENTS)
    await conductor.look()
    home.clock.jump_wall(-86_400)
    conductor = home.conductor() if restarted else conductor
    await conductor.look()
    home.clock.advance(60)
    home.reports(*AGENTS)
    await conductor.look()
    assert len(home.course(one).told) == len(AGENTS)
    # Nobody takes it any more: that is noticed as well.
    for _ in range(3):
        home.clock.advance(61)
        home.reports(AGENTS[0])
        conductor.heard(AGENTS[:1])
        await conductor.look()
    assert home.course(one).state is not RolloutState.RUNNING


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_clock_that_was_set_forward_ends_no_rollout_before_its_agents(
    home: Home, restarted: bool
) -> None:
    home.reports(*AGENTS)
    one = home.start(gates=(SUCCESS,), max_parallel=1)
    conductor = home.conductor()
    await conductor.look()
    home.reports(*home.course(one).told)
    home.clock.jump_wall(86_400)
    conductor = home.conductor() if restarted else conductor
    await conductor.look()
    assert home.course(one).state is RolloutState.RUNNING
    assert len(home.course(one).told) == 1
    home.reports(*AGENTS)
    conductor.heard(AGENTS)
    await conductor.look()
    assert len(home.course(one).told) == 2


def test_a_command_after_an_outage_blames_nobody_and_sends_nobody_back(
    home: Home,
) -> None:
    home.reports(*AGENTS)
    waves = (Wave(count=10, soak_s=60), Wave())
    one = home.start(waves=waves, gates=(SUCCESS,), way_back=WayBack("1", 9))
    home.conductor().heal()
    home.clock.advance(3600)  # the daemon is away for so long
    operator = Rollouts(
        home.database, home.registry, lambda: Now(home.clock.wall_ms()), "alice@desk"
    )
    operator.pause(one.generation)
    operator.resume(one.generation)
    assert home.course(one).state is RolloutState.RUNNING
    assert len(home.course(one).told) == 10


async def test_a_thousand_reports_are_few_looks(home: Home) -> None:
    home.reports(*AGENTS)
    home.start(waves=(Wave(count=1), Wave()))
    conductor, looks = home.conductor(), 0
    counted = conductor.look

    async def count() -> bool:
        nonlocal looks
        looks += 1
        return await counted()

    conductor.look = count  # type: ignore[method-assign]  # counted, not replaced
    async with running(conductor):
        for each in range(1000):
            conductor.heard([AGENTS[each % len(AGENTS)]])
            if each % 50 == 0:
                await asyncio.sleep(0)
        await until(lambda: looks > 0)
    assert looks < 50
