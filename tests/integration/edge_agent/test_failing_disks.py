"""A disk that fails one model stops neither the agent nor its other models."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from typing_extensions import override

from bundle import layout
from bundle.source import SourceUnavailable
from edge_agent.adapters.model_store import ModelStore
from edge_agent.adapters.trial import TrialFailed
from edge_agent.core.served import Served
from edge_agent.core.slots import Slots, State
from tests.updating import MODEL, Agent, Registry, running, want
from tests.waiting import until

BROKEN = "broken"
WATCHED = {"probation_s": 60.0}


class FailingDisk(ModelStore):
    """What it is told to fails for the model `broken`."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.fails: set[str] = set()

    def _check(self, model: str, what: str) -> None:
        if model == BROKEN and what in self.fails:
            raise OSError(5, "Input/output error")

    @override
    def save(self, slots: Slots) -> None:
        self._check(slots.model, "save")
        super().save(slots)

    @override
    def collect(self, slots: Slots) -> None:
        self._check(slots.model, "collect")
        super().collect(slots)

    @override
    def drop_parts(self, model: str, version: str) -> None:
        self._check(model, "drop_parts")
        super().drop_parts(model, version)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    made = Registry(tmp_path / "registry")
    for model in (MODEL, BROKEN):
        first = made.publish("1", 1, model=model)
        made.publish("2", 2, model=model, data=b"another")
        made.sign(first.model_copy(update={"epoch": 3, "way_back": True}))
    return made


@pytest.fixture
def disk(tmp_path: Path) -> FailingDisk:
    return FailingDisk(tmp_path / "agent" / "models")


@pytest.fixture
def agent(tmp_path: Path, registry: Registry, disk: FailingDisk) -> Agent:
    return Agent(tmp_path / "agent", registry, disk)


@pytest.mark.parametrize("what", ["save", "collect", "drop_parts"])
async def test_a_refusal_that_the_disk_does_not_take_ends_no_other_models_update(
    agent: Agent, registry: Registry, disk: FailingDisk, what: str
) -> None:
    disk.fails = {what}
    registry.publish("bad", 1, model=BROKEN)
    agent.bad["bad"] = TrialFailed("golden outputs differ")
    seal = registry.publish("3", 3, data=b"a third")
    pulling = asyncio.Event()

    def wait_for_it(path: str, _offset: int) -> None:
        if path == layout.blob(seal.sha256) and not refused():
            pulling.set()
            raise SourceUnavailable("the test holds it back")

    def refused() -> bool:
        return agent.book.of(BROKEN).state is State.REFUSED

    registry.before_read = wait_for_it
    async with running(agent):
        await agent.gets(want("3", 1, 3))
        await pulling.wait()
        await agent.gets(want("3", 1, 3), want("bad", 1, 1, model=BROKEN))
        await until(refused, 10)
        # The pull that was under way goes on, and its loop was never begun anew.
        await agent.serves("3")


async def test_a_version_that_cannot_be_written_down_does_not_serve_and_is_tried_again(
    agent: Agent, disk: FailingDisk
) -> None:
    async with running(agent):
        await agent.gets(want("1", 1, 1, model=BROKEN))
        await until(lambda: agent.serving.get(BROKEN) == "1", 10)
        await until(lambda: agent.book.of(BROKEN).state is State.SWAPPED, 10)
        disk.fails = {"save"}
        await agent.gets(want("2", 2, 2, model=BROKEN), want("1", 1, 1))
        await until(lambda: agent.book.of(BROKEN).state is State.WAITING, 10)
        await agent.serves("1")
        assert agent.serving[BROKEN] == "1"
        disk.fails = set()
        agent.updates.look_now()
        await until(lambda: agent.serving[BROKEN] == "2", 10)


async def test_a_way_back_that_cannot_be_written_down_does_not_serve_yet(
    agent: Agent, disk: FailingDisk
) -> None:
    async with running(agent):
        await agent.gets(want("1", 1, 1, model=BROKEN))
        await until(lambda: agent.book.of(BROKEN).state is State.SWAPPED, 10)
        await agent.gets(want("2", 2, 2, model=BROKEN, policy=WATCHED))
        await until(lambda: agent.serving[BROKEN] == "2", 10)
        disk.fails = {"save"}
        await agent.gets(want("1", 3, 3, model=BROKEN))
        await agent.has_looked()
        await until(lambda: not agent.book.lock(BROKEN).locked(), 10)
        # What serves is what the slots say, else the wrong one would be judged.
        assert agent.serving[BROKEN] == agent.book.of(BROKEN).active == "2"
        disk.fails = set()
        agent.updates.look_now()
        await until(lambda: agent.book.of(BROKEN).state is State.SWAPPED, 10)
        assert agent.serving[BROKEN] == agent.book.of(BROKEN).active == "1"


class Stubborn(Agent):
    """It cannot put a version in service in place of the second of `broken`."""

    @override
    async def swap(self, served: Served) -> None:
        if served.manifest.name == BROKEN and self.serving.get(BROKEN) == "2":
            raise RuntimeError("a fault of ours")
        await super().swap(served)


async def test_a_model_that_cannot_be_judged_holds_up_no_other_probation(
    tmp_path: Path, registry: Registry
) -> None:
    agent = Stubborn(tmp_path / "agent", registry)
    async with running(agent):
        names = (BROKEN, MODEL)
        await agent.gets(*(want("1", 1, 1, model=name) for name in names))
        await until(lambda: all(agent.serving.get(name) == "1" for name in names), 10)
        await agent.gets(
            *(want("2", 2, 2, model=name, policy=WATCHED) for name in names)
        )
        await until(lambda: all(agent.serving.get(name) == "2" for name in names), 10)
        for name in names:
            for _ in range(20):
                agent.accounts.asked(name, "2", failed=True)
        async with asyncio.TaskGroup() as tasks:
            judging = tasks.create_task(agent.probation.run())
            await until(lambda: agent.serving[MODEL] == "1", 10)
            assert not judging.done()
            judging.cancel()
    assert agent.book.of(BROKEN).state is State.PROBATION
