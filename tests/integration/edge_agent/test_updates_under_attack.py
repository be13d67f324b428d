"""Updates of an agent that is told wrong things by somebody without keys, or in bad luck."""

from __future__ import annotations

import asyncio
import os
from functools import partial
from pathlib import Path

import pytest

from broker.messages import Report
from bundle import layout
from bundle.seal import Seal
from bundle.source import SourceUnavailable
from bundle.trust.errors import NotSigned, Stale
from edge_agent.core.slots import State
from tests.updating import MODEL, Agent, Registry, running, want
from tests.waiting import until


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


@pytest.fixture
def agent(tmp_path: Path, registry: Registry) -> Agent:
    return Agent(tmp_path / "agent", registry)


async def test_what_is_signed_while_trust_is_refreshed_is_looked_up_anew(
    agent: Agent, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As `TrustedSeals`: what was newest at the last refresh is newest until the next.
    known: set[tuple[str, int]] = set()
    signed: set[tuple[str, int]] = {("1", 0)}
    slow = asyncio.Event()
    begun = asyncio.Event()

    async def refresh() -> None:
        newest = set(signed)
        begun.set()
        await slow.wait()
        known.clear()
        known.update(newest)

    really = registry.seal_for

    async def seal_for(model: str, version: str, epoch: int) -> Seal:
        if (version, epoch) not in known:
            raise NotSigned(f"{version} in {epoch} is not signed")
        return await really(model, version, epoch)

    monkeypatch.setattr(registry, "refresh", refresh)
    monkeypatch.setattr(registry, "seal_for", seal_for)
    registry.publish("1")
    async with running(agent):
        await agent.gets(want("1", 1))
        await begun.wait()
        registry.publish("2", 1)
        signed.add(("2", 1))
        await agent.gets(want("2", 2, 1))
        await agent.has_looked()
        slow.set()
        await until(
            lambda: (
                agent.slots.state in (State.SWAPPED, State.REFUSED)
                and agent.slots.generation == 2
            ),
            10,
        )
        assert (agent.slots.state, agent.slots.active) == (State.SWAPPED, "2")


async def test_a_way_back_that_is_damaged_is_pulled_anew_when_it_is_desired(
    agent: Agent, registry: Registry
) -> None:
    watched = {"probation_s": 60.0}
    registry.publish("1")
    registry.publish("2", 1, data=b"another")
    async with running(agent):
        await agent.gets(want("1", 1))
        await agent.serves("1")
        await agent.gets(want("2", 2, 1, policy=watched))
        await agent.until_state(State.PROBATION, "2")
        registry.publish("1", 2)
        (agent.root / "models" / MODEL / "1" / "m.tflite").write_bytes(b"rotted")
        await agent.gets(want("1", 3, 2))
        # It comes anew, and until it is there the other one serves.
        await agent.serves("1")
        assert agent.swapped == ["1", "2", "1"]


async def test_a_generation_without_bounds_stops_updates_for_a_while_and_not_for_ever(
    agent: Agent, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_agent.loops.updates.LATE_S", 0.2, raising=False)
    registry.publish("1")
    registry.publish("2", 1)
    async with running(agent):
        await agent.gets(want("1", 1))
        await agent.serves("1")
        # By whoever can publish a desired state and sign nothing.
        await agent.gets(want("evil", 2**63 - 1, 9))
        await agent.until_state(State.REFUSED)
        # What the fleet says is older now: a late message, perhaps.
        await agent.gets(want("2", 2, 1))
        await agent.has_looked()
        assert agent.serving == {MODEL: "1"}
        async with asyncio.timeout(10):
            while agent.slots.active != "2":
                await agent.has_looked()
                await asyncio.sleep(0.05)
        await agent.serves("2")


async def test_a_pull_that_a_late_message_interrupted_begins_again(
    agent: Agent, registry: Registry
) -> None:
    registry.publish("1")
    registry.publish("2", 1, data=b"another")

    def no_blobs(path: str, _offset: int) -> None:
        if path.startswith("blobs/"):
            raise SourceUnavailable("the test holds it back")

    async with running(agent):
        await agent.gets(want("1", 1))
        await agent.serves("1")
        registry.before_read = no_blobs
        await agent.gets(want("2", 2, 1))
        await agent.until_state(State.PULLING)
        await agent.gets(want("1", 1))
        await agent.has_looked()
        await until(lambda: not agent.book.lock(MODEL).locked(), 10)
        registry.before_read = lambda _path, _offset: None
        await agent.gets(want("2", 2, 1))
        await agent.serves("2")


def all_refused(agent: Agent, names: list[str]) -> bool:
    return all(agent.book.of(name).state is State.REFUSED for name in names)


async def test_models_that_nobody_signed_leave_nothing_on_the_disk_and_reports_go_on(
    agent: Agent, registry: Registry
) -> None:
    registry.publish("1")
    async with running(agent):
        await agent.gets(want("1", 1))
        await agent.serves("1")
        for several in range(2):
            names = [f"none-{several}-{each}" for each in range(160)]
            await agent.gets(*(want("1", 1, model=name) for name in names))
            await until(partial(all_refused, agent, names), 20)
        on_disk = [each.name for each in (agent.root / "models").iterdir()]
        assert sorted(on_disk) == [".parts", MODEL]
        slots = [each.report() for each in agent.book.all.values()]
        assert len(Report(agent="edge", at_ms=0, slots=slots).slots) == 161


async def test_trust_that_has_expired_stops_updates_says_so_and_nothing_else(
    agent: Agent, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def expired(*_: object) -> Seal:
        raise Stale("timestamp.json is expired (it is 2027-01-01 00:00 UTC here)")

    registry.publish("1")
    registry.publish("2", 1, data=b"another")
    async with running(agent):
        await agent.gets(want("1", 1))
        await agent.serves("1")
        with monkeypatch.context() as frozen:
            frozen.setattr(registry, "refresh", expired)
            frozen.setattr(registry, "seal_for", expired)
            await agent.gets(want("2", 2, 1))
            slots = await agent.until_state(State.WAITING, "1")
            assert "is expired" in (slots.report().reason or "")
            assert agent.serving == {MODEL: "1"}
        agent.updates.look_now()
        await agent.serves("2")


async def test_a_second_probation_of_a_version_counts_nothing_of_the_first(
    agent: Agent, registry: Registry
) -> None:
    watched = {"probation_s": 60.0, "probation_requests": 2}
    registry.publish("1")
    registry.publish("2", 1, data=b"another")
    async with running(agent):
        await agent.gets(want("1", 1))
        await agent.serves("1")
        await agent.gets(want("2", 2, 1, policy=watched))
        await agent.until_state(State.PROBATION, "2")
        agent.accounts.asked(MODEL, "2", failed=False)
        agent.accounts.asked(MODEL, "2", failed=False)
        agent.now_s += 59.0
        await agent.probation.look(MODEL)
        registry.publish("1", 2)
        await agent.gets(want("1", 3, 2))
        await agent.serves("1")
        registry.publish("2", 3, data=b"another")
        await agent.gets(want("2", 4, 3, policy=watched))
        await agent.until_state(State.PROBATION, "2")
    # Its process is killed before anything was noted of the second.
    after = Agent(agent.root, registry)
    await after.probation.restore()
    after.now_s += 1.0
    await after.probation.look(MODEL)
    assert after.is_in(State.PROBATION)


async def test_what_was_pulled_of_a_version_that_is_wanted_no_more_goes(
    agent: Agent, registry: Registry
) -> None:
    first = registry.publish("1", data=os.urandom(300_000))
    registry.publish("2", 1, data=b"another")

    def no_end(path: str, offset: int) -> None:
        if path == layout.blob(first.sha256) and offset:
            raise SourceUnavailable("the test holds it back")

    registry.before_read = no_end
    async with running(agent):
        await agent.gets(want("1", 1))
        await until(lambda: bool(agent.parts()), 10)
        await agent.gets(want("2", 2, 1))
        await agent.serves("2")
        assert agent.parts() == []


async def test_a_shadow_that_was_damaged_while_the_agent_was_off_comes_again(
    agent: Agent, registry: Registry
) -> None:
    registry.publish("1")
    registry.publish("2", 1, data=b"another")
    async with running(agent):
        await agent.gets(want("1", 1))
        await agent.serves("1")
        await agent.gets(want("2", 2, 1, shadow=True))
        await agent.until_state(State.SHADOW)
    (agent.root / "models" / MODEL / "2" / "m.tflite").write_bytes(b"rotted")
    after = Agent(agent.root, registry)
    async with running(after):
        after.updates.look_now()
        await until(lambda: after.shadows.running == {MODEL: "2"}, 5)
        assert after.is_in(State.SHADOW)
