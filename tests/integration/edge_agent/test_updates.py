"""Updates against a real registry, a real store and real pulls; the road is in memory."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from broker.codec import encode
from broker.messages import Desired, DesiredModel, Get
from bundle import layout
from bundle.manifest import Requires
from edge_agent.adapters.model_store import ModelStore
from edge_agent.adapters.trial import TrialFailed
from edge_agent.core.slots import Slots, State
from tests.updating import AGENT, HERE, MODEL, Agent, Registry, running, want
from tests.waiting import until

CHUNK = 128 * 1024
BIG = os.urandom(700 * 1024)  # Six chunks.
WATCHED = {"probation_s": 60.0}
NIGHT = {"start_minute": 22 * 60, "minutes": 240}


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


@pytest.fixture
def agent(tmp_path: Path, registry: Registry) -> Agent:
    return Agent(tmp_path / "agent", registry)


def again(agent: Agent) -> Agent:
    """The agent after its process ended and another began."""
    return Agent(agent.root, agent.registry)


async def test_each_chunk_is_pulled_once_and_the_version_serves_after_a_restart(
    agent: Agent, registry: Registry
) -> None:
    seal = registry.publish("1", data=BIG)
    async with running(agent):
        await agent.gets(want("1", 1))
        await agent.serves("1")
        assert agent.swapped == ["1"]
        assert registry.chunks(seal) == dict.fromkeys(range(6), 1)
        assert agent.parts() == []
    assert again(agent).slots == agent.slots
    assert agent.store.bundle(MODEL, "1").manifest.version == "1"


async def test_a_chunk_that_came_damaged_is_asked_for_again(
    agent: Agent, registry: Registry
) -> None:
    registry.publish("1", data=BIG)
    registry.spoiled = {5 * CHUNK}
    async with running(agent):
        await agent.gets(want("1", 1))
        await agent.serves("1")


async def test_a_pull_goes_on_where_it_was_when_the_source_was_lost(
    agent: Agent, registry: Registry
) -> None:
    seal = registry.publish("1", data=BIG)

    def lose(path: str, offset: int) -> None:
        registry.down |= path == layout.blob(seal.sha256) and offset == 3 * CHUNK

    registry.before_read = lose
    async with running(agent):
        await agent.gets(want("1", 1))
        await until(lambda: registry.down)
    registry.before_read, registry.down = (lambda _path, _offset: None), False
    before = registry.chunks(seal)
    after = again(agent)
    async with running(after):
        after.updates.look_now()
        await after.serves("1")
    # At most what was in the window is fetched again.
    assert sum(registry.chunks(seal).values()) <= 6 + 4
    assert len(before) >= 3


async def test_what_is_desired_anew_in_the_midst_of_a_pull_wins(
    agent: Agent, registry: Registry
) -> None:
    first, _ = registry.publish("1", data=BIG), registry.publish("2")

    def change_mind(path: str, offset: int) -> None:
        if path == layout.blob(first.sha256) and offset == 2 * CHUNK:
            registry.desire(want("2", 2))
            agent.updates.look_now()
            registry.down = True  # The pull of the first would never end.
        if path.startswith(layout.DESIRED):
            registry.down = False

    registry.before_read = change_mind
    async with running(agent):
        await agent.gets(want("1", 1))
        await agent.serves("2")
        assert agent.swapped == ["2"]


async def test_a_model_that_is_stuck_blocks_no_other(
    agent: Agent, registry: Registry
) -> None:
    stuck = registry.publish("1", model="stuck")
    registry.publish("1")

    def lost(path: str, _offset: int) -> None:
        registry.down = path == layout.blob(stuck.sha256)

    registry.before_read = lost
    async with running(agent):
        await agent.gets(want("1", 1, model="stuck"), want("1", 1))
        await agent.serves("1")
        assert agent.book.of("stuck").active is None


async def test_a_refused_version_leaves_nothing_behind_and_does_not_block_the_next(
    agent: Agent, registry: Registry
) -> None:
    for version in ("1", "2", "4"):
        registry.publish(version)
    registry.publish("3", signed=False)
    agent.bad["2"] = TrialFailed("fashion 2: golden outputs differ")
    async with running(agent):
        await agent.gets(want("1", 1))
        await agent.serves("1")
        for generation, version in enumerate(("2", "3", "9"), start=2):
            await agent.gets(want(version, generation))
            await until(lambda: agent.slots.staged == version)  # noqa: B023 - awaited here
            await agent.until_state(State.REFUSED, "1")
            await until(lambda: agent.files() == {"1", "slots.json"})
            await until(lambda: agent.parts() == [])
        assert "fashion/9.0.json is not signed" in (agent.slots.reason or "")
        # It is not tried again by itself, however often it is looked at.
        await agent.has_looked()
        assert agent.is_in(State.REFUSED)
        await agent.gets(want("4", 9))
        await agent.serves("4")
        assert agent.swapped == ["1", "4"]


async def test_going_back_needs_no_pull_and_a_signature_of_its_epoch(
    agent: Agent, registry: Registry
) -> None:
    first, second = registry.publish("1", 1), registry.publish("2", 2)
    registry.sign(first.model_copy(update={"epoch": 3}))
    async with running(agent):
        for generation, version, epoch in ((1, "1", 1), (2, "2", 2), (3, "1", 3)):
            await agent.gets(want(version, generation, epoch))
            await agent.serves(version)
        assert agent.swapped == ["1", "2", "1"]
        assert agent.slots.floor == 3
        assert registry.chunks(first) == registry.chunks(second) == {0: 1}
        # Nobody signed version 2 in a fourth epoch.
        await agent.gets(want("2", 4, 4))
        slots = await agent.until_state(State.REFUSED, "1")
        assert "fashion/2.4.json is not signed" in (slots.reason or "")


async def test_a_signed_version_below_the_floor_is_refused_by_name(
    agent: Agent, registry: Registry
) -> None:
    registry.publish("1", 1)
    registry.publish("2", 2)
    async with running(agent):
        await agent.gets(want("2", 1, 2))
        await agent.serves("2")
        await agent.gets(want("1", 2, 1))
        slots = await agent.until_state(State.REFUSED, "2")
        assert "in epoch 1, but nothing below epoch 2 is taken" in (slots.reason or "")
    assert again(agent).slots.floor == 2


async def test_an_epoch_that_nobody_signed_does_not_raise_the_floor(
    agent: Agent, registry: Registry
) -> None:
    registry.publish("1", 1)
    async with running(agent):
        await agent.gets(want("1", 1, 1))
        await agent.serves("1")
        await agent.gets(want("1", 2, 2**53))
        await agent.until_state(State.REFUSED, "1")
        assert (agent.slots.epoch, agent.slots.floor) == (1, 1)


@pytest.mark.parametrize(
    ("requires", "said"),
    [
        (Requires(machines=["aarch64"]), "for the machine aarch64, this device is x86"),
        (Requires(boards=["gateway-3"]), "for the board gateway-3"),
        (Requires(runtimes=["tflite"]), "for the runtime tflite"),
        (Requires(memory_mb=513), "needs 513 MB of memory, this device has 512 MB"),
    ],
)
async def test_a_bundle_for_another_device_is_refused_before_it_is_pulled(
    agent: Agent, registry: Registry, requires: Requires, said: str
) -> None:
    seal = registry.publish("1", requires=requires)
    async with running(agent):
        await agent.gets(want("1", 1))
        slots = await agent.until_state(State.REFUSED)
    assert said in (slots.reason or "")
    assert registry.chunks(seal) == {}


async def test_a_device_that_says_nothing_of_its_board_takes_no_bundle_for_one(
    agent: Agent, registry: Registry
) -> None:
    agent.device = replace(HERE, board=None)
    registry.publish("1", requires=Requires(boards=["gateway-2"]))
    async with running(agent):
        await agent.gets(want("1", 1))
        slots = await agent.until_state(State.REFUSED)
    assert "does not say its board" in (slots.reason or "")


class SmallDisk(ModelStore):
    """A store whose disk is as full as the test says."""

    free = 0
    saves = True

    @override
    def free_bytes(self) -> int:
        return self.free

    @override
    def save(self, slots: Slots) -> None:
        if not self.saves:
            raise OSError(28, "No space left on device")
        super().save(slots)


async def test_without_room_an_update_waits_and_says_so_and_goes_on_with_room(
    tmp_path: Path, registry: Registry
) -> None:
    disk = SmallDisk(tmp_path / "agent" / "models")
    agent = Agent(tmp_path / "agent", registry, disk)
    registry.publish("1")
    async with running(agent):
        await agent.gets(want("1", 1))
        slots = await agent.until_state(State.WAITING)
        assert "the disk has 0 bytes free; fashion 1 needs" in (slots.reason or "")
        disk.free = 10**9
        agent.updates.look_now()
        await agent.serves("1")


async def test_the_way_back_is_given_up_when_only_so_there_is_room(
    tmp_path: Path, registry: Registry
) -> None:
    disk = SmallDisk(tmp_path / "agent" / "models")
    disk.free = 10**9
    agent = Agent(tmp_path / "agent", registry, disk)
    for version in ("1", "2", "3"):
        registry.publish(version)
    async with running(agent):
        for generation, version in enumerate(("1", "2"), start=1):
            await agent.gets(want(version, generation))
            await agent.serves(version)
        disk.free = 0
        await agent.gets(want("3", 3))
        slots = await agent.until_state(State.WAITING, "2")
        assert slots.previous is None
        assert agent.files() == {"2", "slots.json"}


async def test_a_disk_that_takes_nothing_stops_neither_the_agent_nor_a_later_try(
    tmp_path: Path, registry: Registry
) -> None:
    disk = SmallDisk(tmp_path / "agent" / "models")
    disk.free, disk.saves = 10**9, False
    agent = Agent(tmp_path / "agent", registry, disk)
    registry.publish("1")
    async with running(agent):
        await agent.gets(want("1", 1))
        await agent.until_state(State.WAITING)
        disk.saves = True
        agent.updates.look_now()
        await agent.serves("1")


async def test_a_maintenance_window_is_waited_for_in_the_devices_own_time(
    agent: Agent, registry: Registry
) -> None:
    seal = registry.publish("1")
    async with running(agent):
        await agent.gets(want("1", 1, policy={"window": NIGHT}))
        slots = await agent.until_state(State.WAITING)
        assert "opens Monday 22:00 local time" in (slots.reason or "")
        # A device without a clock does not guess.
        agent.local_now = None
        await agent.has_looked()
        await until(lambda: "does not know the time" in (agent.slots.reason or ""))
        assert registry.chunks(seal) == {}
        agent.local_now = datetime(2026, 11, 24, 1, 59, tzinfo=UTC)
        agent.updates.look_now()
        await agent.serves("1")


async def test_a_window_that_closes_while_it_pulls_keeps_the_swap_for_the_next(
    agent: Agent, registry: Registry
) -> None:
    seal = registry.publish("1")
    agent.local_now = datetime(2026, 11, 24, 1, 59, tzinfo=UTC)

    def closes(path: str, _offset: int) -> None:
        if path == layout.blob(seal.sha256):
            agent.local_now = datetime(2026, 11, 24, 2, 0, tzinfo=UTC)

    registry.before_read = closes
    async with running(agent):
        await agent.gets(want("1", 1, policy={"window": NIGHT}))
        await agent.until_state(State.WAITING)
        assert agent.swapped == []
        agent.local_now = datetime(2026, 11, 24, 22, 0, tzinfo=UTC)
        agent.updates.look_now()
        await agent.serves("1")
    assert registry.chunks(seal) == {0: 1}


async def test_a_bundle_that_holds_something_else_than_was_sealed_is_refused(
    agent: Agent, registry: Registry
) -> None:
    seal = registry.publish("1")
    other = seal.model_copy(update={"version": "2"})
    registry.sign(other)
    async with running(agent):
        await agent.gets(want("2", 1))
        slots = await agent.until_state(State.REFUSED)
    assert "the manifest inside says fashion 1" in (slots.reason or "")


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"\xc1 nonsense",
        encode(Get(want="file", path="desired/agent-1")),
        encode(Desired(agent="another", models=[DesiredModel(model="x", version="1")])),
    ],
    ids=["empty", "nonsense", "another message", "another agent's"],
)
async def test_a_desired_state_that_is_none_changes_nothing(
    agent: Agent, registry: Registry, document: bytes
) -> None:
    registry.publish("1")
    registry.tree.write(f"{layout.DESIRED}/{AGENT}", document)
    async with running(agent):
        await agent.has_looked()
        assert agent.slots == Slots(MODEL)
        await agent.gets(want("1", 1))
        await agent.serves("1")


async def test_a_fault_of_our_own_in_an_update_is_reported_and_ends_nothing(
    agent: Agent, registry: Registry
) -> None:
    for version in ("1", "2"):
        registry.publish(version)
    agent.bad["1"] = ZeroDivisionError("a fault of ours")
    async with running(agent):
        await agent.gets(want("1", 1))
        slots = await agent.until_state(State.REFUSED)
        assert "a fault of ours" in (slots.reason or "")
        await agent.gets(want("2", 2))
        await agent.serves("2")


# --- probation ---------------------------------------------------------------------


async def on_probation(agent: Agent, **policy: Any) -> None:
    """Version 1 is proved, version 2 serves on probation."""
    agent.registry.publish("1", 1)
    agent.registry.publish("2", 2)
    await agent.gets(want("1", 1, 1))
    await agent.serves("1")
    await agent.gets(want("2", 2, 2, policy={**WATCHED, **policy}))
    await agent.until_state(State.PROBATION, "2")
    assert agent.serving[MODEL] == "2"
    assert agent.slots.floor == 1


async def test_a_version_that_does_well_for_long_enough_is_committed(
    agent: Agent,
) -> None:
    async with running(agent):
        await on_probation(agent, probation_requests=2)
        agent.now_s += 61.0
        await agent.probation.look(MODEL)
        assert agent.is_in(State.PROBATION)  # Nobody has asked it anything.
        for _ in range(2):
            agent.accounts.asked(MODEL, "2", failed=False)
        await agent.probation.look(MODEL)
        assert agent.is_in(State.SWAPPED)
        assert (agent.slots.floor, agent.slots.previous) == (2, "1")


async def test_a_version_that_fails_requests_returns_by_itself_and_is_not_tried_again(
    agent: Agent,
) -> None:
    async with running(agent):
        await on_probation(agent)
        for _ in range(20):
            agent.accounts.asked(MODEL, "2", failed=True)
        await agent.probation.look(MODEL)
        assert agent.serving[MODEL] == "1"
        slots = agent.slots
        assert (slots.state, slots.active, slots.staged) == (State.RETURNED, "1", "2")
        assert (slots.floor, slots.epoch) == (1, 1)
        assert "20 of 20 requests failed" in (slots.reason or "")
        assert agent.files() == {"1", "slots.json"}
        await agent.has_looked()
        assert agent.is_in(State.RETURNED)
    assert again(agent).serving == {MODEL: "1"}


async def test_the_first_version_of_all_returns_to_none(
    agent: Agent, registry: Registry
) -> None:
    registry.publish("1")
    async with running(agent):
        await agent.gets(want("1", 1, policy=WATCHED))
        await agent.until_state(State.PROBATION, "1")
        for _ in range(20):
            agent.accounts.asked(MODEL, "1", failed=True)
        await agent.probation.look(MODEL)
        assert agent.serving == {}
        assert agent.slots.active is None


async def test_a_version_that_does_not_load_here_never_leaves_the_old_one(
    agent: Agent, registry: Registry
) -> None:
    registry.publish("1")
    registry.publish("2")
    agent.unloadable = {"2"}
    async with running(agent):
        await agent.gets(want("1", 1))
        await agent.serves("1")
        await agent.gets(want("2", 2, policy=WATCHED))
        slots = await agent.until_state(State.RETURNED, "1")
        assert "2 does not load" in (slots.reason or "")
        assert agent.swapped == ["1"]


async def test_a_version_that_ends_the_agent_returns_before_it_is_loaded_again(
    agent: Agent,
) -> None:
    async with running(agent):
        await on_probation(agent)
    second = again(agent)
    third = again(second)
    assert [second.serving[MODEL], third.serving[MODEL]] == ["2", "2"]
    fourth = again(third)
    assert fourth.serving[MODEL] == "1"
    assert fourth.is_in(State.RETURNED)
    assert "ended 3 times" in (fourth.slots.reason or "")


async def test_a_power_cut_in_a_probation_resumes_it_with_what_was_counted(
    agent: Agent,
) -> None:
    async with running(agent):
        await on_probation(agent, probation_requests=3)
        for _ in range(2):
            agent.accounts.asked(MODEL, "2", failed=False)
        agent.now_s += 50.0
        await agent.probation.look(MODEL)  # It is time to note the counts.
    after = again(agent)
    await after.probation.restore()
    async with running(after):
        await after.probation.look(MODEL)
        assert after.is_in(State.PROBATION)
        after.accounts.asked(MODEL, "2", failed=False)
        after.now_s += 11.0
        await after.probation.look(MODEL)
        assert after.is_in(State.SWAPPED)


async def test_an_agent_that_is_stopped_in_order_has_not_ended_by_its_model(
    agent: Agent,
) -> None:
    async with running(agent):
        await on_probation(agent)
    for _ in range(5):
        await agent.probation.close()
        agent = again(agent)
        assert agent.serving[MODEL] == "2"
    assert agent.slots.starts == 1


async def test_something_newer_ends_a_probation_and_the_way_back_stays_proved(
    agent: Agent, registry: Registry
) -> None:
    registry.publish("3", 3)
    async with running(agent):
        await on_probation(agent)
        await agent.gets(want("3", 3, 3, policy=WATCHED))
        slots = await agent.until_state(State.PROBATION, "3")
        assert slots.previous == "1"
        assert agent.swapped == ["1", "2", "1", "3"]


async def test_a_return_that_the_disk_does_not_take_serves_and_is_written_later(
    tmp_path: Path, registry: Registry
) -> None:
    disk = SmallDisk(tmp_path / "agent" / "models")
    disk.free = 10**9
    agent = Agent(tmp_path / "agent", registry, disk)
    async with running(agent):
        await on_probation(agent)
        for _ in range(20):
            agent.accounts.asked(MODEL, "2", failed=True)
        disk.saves = False
        await agent.probation.look(MODEL)
        assert agent.serving[MODEL] == "1"
        assert agent.is_in(State.RETURNED)
        disk.saves = True
        await agent.probation.look(MODEL)
    assert again(agent).slots.state is State.RETURNED


# --- shadows -----------------------------------------------------------------------


async def test_a_shadow_runs_beside_and_may_be_promoted_without_another_pull(
    agent: Agent, registry: Registry
) -> None:
    registry.publish("1", 1)
    seal = registry.publish("2", 2)
    async with running(agent):
        await agent.gets(want("1", 1, 1))
        await agent.serves("1")
        await agent.gets(want("2", 2, 2, shadow=True))
        slots = await agent.until_state(State.SHADOW, "1")
        assert (slots.staged, slots.floor) == ("2", 1)
        assert agent.shadows.running == {MODEL: "2"}
    after = again(agent)
    async with running(after):
        await until(lambda: after.shadows.running == {MODEL: "2"})
        await after.gets(want("2", 3, 2))
        await after.serves("2")
        assert after.shadows.running == {}
    assert registry.chunks(seal) == {0: 1}


async def test_a_shadow_ends_when_the_fleet_desires_what_serves(
    agent: Agent, registry: Registry
) -> None:
    registry.publish("1", 1)
    registry.publish("2", 2)
    async with running(agent):
        await agent.gets(want("1", 1, 1))
        await agent.serves("1")
        await agent.gets(want("2", 2, 2, shadow=True))
        await agent.until_state(State.SHADOW)
        await agent.gets(want("1", 3, 1))
        await agent.until_state(State.IDLE, "1")
        await until(lambda: agent.files() == {"1", "slots.json"})
        assert agent.shadows.running == {}


# --- after an outage ---------------------------------------------------------------


async def test_agents_that_lost_their_link_together_do_not_look_together(
    tmp_path: Path, registry: Registry
) -> None:
    looked_s: list[float] = []
    loop = asyncio.get_running_loop()
    registry.before_read = lambda _path, _offset: looked_s.append(loop.time())
    async with AsyncExitStack() as stack:
        for number in range(20):
            agent = Agent(tmp_path / str(number), registry, spread_s=0.5, seed=number)
            await stack.enter_async_context(running(agent))
            agent.updates.link_changed(up=True)
        began_s = loop.time()
        await until(lambda: len(looked_s) == 20, 10)
    waits = sorted(each - began_s for each in looked_s)
    assert waits[-1] < 3.0
    # Not all at the start, and not all at the end.
    assert waits[-1] - waits[0] > 0.25
