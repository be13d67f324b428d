"""Ways back: desired by somebody without keys, damaged on the disk, or not there at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from typing_extensions import override

from edge_agent.core.slots import State
from tests.updating import MODEL, Agent, Registry, running, want
from tests.waiting import until

WATCHED = {"probation_s": 60.0}


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Version 2 is published in epoch 2, and the way back to version 1 in epoch 3."""
    made = Registry(tmp_path / "registry")
    first = made.publish("1", 1)
    made.publish("2", 2, data=b"another")
    made.sign(first.model_copy(update={"epoch": 3, "way_back": True}))
    return made


@pytest.fixture
def agent(tmp_path: Path, registry: Registry) -> Agent:
    return Agent(tmp_path / "agent", registry)


async def serving_the_first(agent: Agent) -> None:
    await agent.gets(want("1", 1, 1))
    await agent.serves("1")


async def second_on_probation(agent: Agent) -> None:
    await serving_the_first(agent)
    await agent.gets(want("2", 2, 2, policy=WATCHED))
    await agent.until_state(State.PROBATION, "2")


def fails(agent: Agent, version: str) -> None:
    for _ in range(20):
        agent.accounts.asked(MODEL, version, failed=True)


def damage(agent: Agent, version: str) -> None:
    (agent.root / "models" / MODEL / version / "m.tflite").write_bytes(b"rotted")


# --- desired by whoever can publish a desired state, and sign nothing -----------------


async def test_the_way_back_to_what_serves_keeps_nothing_away_that_was_published(
    agent: Agent,
) -> None:
    async with running(agent):
        await serving_the_first(agent)
        await agent.gets(want("1", 5, 3))
        await until(lambda: agent.slots.epoch == 3, 10)
        await agent.gets(want("2", 6, 2))
        await agent.serves("2")


async def test_what_was_really_gone_back_from_stays_away_until_it_is_published_anew(
    agent: Agent, registry: Registry
) -> None:
    async with running(agent):
        await serving_the_first(agent)
        await agent.gets(want("2", 2, 2))
        await agent.serves("2")
        await agent.gets(want("1", 3, 3))
        await agent.serves("1")
    agent = Agent(agent.root, registry)
    async with running(agent):
        await agent.gets(want("2", 4, 2))
        slots = await agent.until_state(State.REFUSED, "1")
        assert "publish it under a new version" in (slots.reason or "")
        # The way out: the same model, published in the next epoch.
        registry.publish("2b", 4, data=b"another")
        await agent.gets(want("2b", 5, 4))
        await agent.serves("2b")


async def test_a_version_that_nobody_signed_ends_no_probation(agent: Agent) -> None:
    async with running(agent):
        await second_on_probation(agent)
        await agent.gets(want("evil", 9, 9))
        await agent.has_looked()
        await until(lambda: not agent.book.lock(MODEL).locked(), 10)
        assert agent.is_in(State.PROBATION)
        assert agent.serving == {MODEL: "2"}


# --- damaged, or none -----------------------------------------------------------------


async def test_a_version_that_failed_without_a_way_back_ends_and_a_newer_one_comes(
    agent: Agent, registry: Registry
) -> None:
    registry.publish("3", 4, data=b"a third")
    async with running(agent):
        await second_on_probation(agent)
        damage(agent, "1")
        fails(agent, "2")
        # A disk may fail once and be well again.
        await agent.probation.look(MODEL)
        assert agent.is_in(State.PROBATION)
        for _ in range(2):
            await agent.probation.look(MODEL)
        assert agent.serving == {}
        slots = agent.slots
        assert (slots.state, slots.active, slots.staged) == (State.RETURNED, None, "2")
        assert "20 of 20 requests failed" in (slots.reason or "")
        assert "1, which served before, cannot serve: m.tflite" in (slots.reason or "")
        await agent.gets(want("3", 3, 4))
        await agent.serves("3")


async def test_a_way_back_that_can_be_read_again_is_taken(agent: Agent) -> None:
    async with running(agent):
        await second_on_probation(agent)
        whole = (agent.root / "models" / MODEL / "1" / "m.tflite").read_bytes()
        damage(agent, "1")
        fails(agent, "2")
        await agent.probation.look(MODEL)
        (agent.root / "models" / MODEL / "1" / "m.tflite").write_bytes(whole)
        await agent.probation.look(MODEL)
        assert agent.serving == {MODEL: "1"}
        assert agent.is_in(State.RETURNED)


class NeverWithout(Agent):
    """It is an error to take its model out of service."""

    @override
    async def remove(self, model: str) -> None:
        raise AssertionError(f"{model} answers nobody")


async def test_without_a_way_back_what_serves_unproved_serves_until_the_newer_one_does(
    tmp_path: Path, registry: Registry
) -> None:
    registry.publish("3", 4, data=b"a third")
    agent = NeverWithout(tmp_path / "agent", registry)
    async with running(agent):
        await second_on_probation(agent)
        damage(agent, "1")
        await agent.gets(want("3", 3, 4, policy=WATCHED))
        slots = await agent.until_state(State.PROBATION, "3")
        assert (slots.previous, slots.floor) == ("2", 1)
    assert agent.swapped == ["1", "2", "3"]


async def test_the_first_version_of_all_serves_until_the_newer_one_does(
    tmp_path: Path, registry: Registry
) -> None:
    agent = NeverWithout(tmp_path / "agent", registry)
    async with running(agent):
        await agent.gets(want("1", 1, 1, policy=WATCHED))
        await agent.until_state(State.PROBATION, "1")
        await agent.gets(want("2", 2, 2, policy=WATCHED))
        slots = await agent.until_state(State.PROBATION, "2")
        assert slots.previous == "1"
    assert agent.swapped == ["1", "2"]
