"""Updates against a real registry and a real store; the pool's road is in memory."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from typing_extensions import override

from broker.codec import decode, encode
from broker.link import LinkDown
from broker.messages import Blob, Desired, DesiredModel, Get
from bundle.pack import pack
from bundle.seal import make_seal, sign_seal
from bundle.store import BundleStore, NotFound
from bundle.trust import generate_key, key_id, public_bytes
from edge_agent.adapters.model_store import ModelStore, StoredBundle
from edge_agent.adapters.trial import TrialFailed
from edge_agent.core.served import Served
from edge_agent.core.slots import State
from edge_agent.loops.updates import Updates, UpdateSettings

KEY = generate_key()
MODEL_BYTES = 700 * 1024  # Six chunks.


class Pool:
    """A link to a pool that serves `registry`, with everything that can go wrong."""

    def __init__(self, registry: BundleStore) -> None:
        self.registry = registry
        self.up = True
        self.deaf = False
        self.asked: Counter[tuple[str, str | None, int]] = Counter()
        self.spoiled: set[int] = set()
        self.before_chunk: Callable[[int], None] = lambda _index: None
        self.answer: Callable[[bytes], None] = lambda _payload: None

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        timeout_s: float = 10.0,  # noqa: ARG002 - the port's
    ) -> None:
        assert topic == "e1/edge/up/get"
        if not self.up:
            raise LinkDown("the test took the link down")
        (get,) = decode(payload, Get).items
        self.asked[get.want, get.version, get.index] += 1
        if get.want == "chunk":
            self.before_chunk(get.index)
            if not self.up:
                raise LinkDown("the test took the link down")
        if not self.deaf:
            asyncio.get_running_loop().call_soon(self.answer, encode(self._blob(get)))

    def _blob(self, get: Get) -> Blob:
        blob = Blob(
            want=get.want, model=get.model, version=get.version, index=get.index
        )
        try:
            return blob.model_copy(update={"data": self._data(get)})
        except NotFound as error:
            return blob.model_copy(update={"status": "not_found", "reason": str(error)})

    def _data(self, get: Get) -> bytes:
        if get.want == "desired":
            found = self.registry.read_desired("edge")
            if found is None:
                raise NotFound("nothing is desired")
            return found
        assert get.model is not None
        assert get.version is not None
        if get.want == "seal":
            return self.registry.read_seal(get.model, get.version)
        data = self.registry.read_chunk(get.model, get.version, get.index)
        if get.index in self.spoiled:
            self.spoiled.discard(get.index)
            return data[:-1] + bytes([data[-1] ^ 1])
        return data

    def chunks(self, version: str) -> dict[int, int]:
        """How often each chunk of a version was asked for."""
        return {
            index: count
            for (want, of, index), count in self.asked.items()
            if (want, of) == ("chunk", version)
        }


class Agent:
    """What `Updates` needs of the agent around it."""

    def __init__(self, root: Path, pool: Pool) -> None:
        self.store = ModelStore(root / "models")
        self.store.prepare()
        self.swapped: list[str] = []
        self.bad: dict[str, Exception] = {}
        self.pool = pool
        self.updates = Updates(
            agent="edge",
            link=pool,
            store=self.store,
            trusted={key_id(public_bytes(KEY)): public_bytes(KEY)},
            settings=UpdateSettings(window=2, timeout_s=0.2, poll_every_s=60.0),
            try_out=self.try_out,
            load=self.load,
            swap=self.swap,
            changed=lambda: None,
            rng=random.Random(1),
        )
        self.updates.start_with(self.store.slots())
        pool.answer = self.updates.on_blob

    async def try_out(self, stored: StoredBundle) -> object:
        if (error := self.bad.get(stored.manifest.version)) is not None:
            raise error
        return None

    async def load(self, stored: StoredBundle) -> Served:
        return cast("Served", stored)

    async def swap(self, served: Served) -> None:
        self.swapped.append(served.manifest.version)

    @property
    def state(self) -> tuple[str | None, State, str | None]:
        slots = self.updates.slots.get("fashion")
        if slots is None:
            return (None, State.IDLE, None)
        return (slots.active, slots.state, slots.reason)

    async def until(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not holds():  # noqa: ASYNC110 - what is asked has no event
                await asyncio.sleep(0.01)

    async def serves(self, version: str) -> None:
        await self.until(lambda: self.state == (version, State.SWAPPED, None))

    def files(self) -> set[str]:
        folder = self.store.bundle("fashion", "1").folder.parent
        return {each.name for each in folder.iterdir()}

    def parts(self) -> list[str]:
        return [each.name for each in self.store.parts.iterdir()]


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return Pool(BundleStore(tmp_path / "registry"))


@pytest.fixture
def publish(tmp_path: Path, pool: Pool) -> Callable[..., None]:
    def published(version: str, *, size: int = MODEL_BYTES, key: Any = KEY) -> None:
        folder = tmp_path / f"source-{version}"
        folder.mkdir()
        (folder / "m.tflite").write_bytes(os.urandom(size))
        manifest = {"format": 1, "name": "fashion", "version": version}
        (folder / "manifest.json").write_text(
            json.dumps({**manifest, "model_file": "m.tflite"})
        )
        packed = tmp_path / f"{version}.tar"
        pack(folder, packed)
        seal = make_seal(packed, "fashion", version)
        pool.registry.publish(packed, sign_seal(seal, key))

    return published


Publish = Callable[..., None]


def desire(pool: Pool, version: str, generation: int) -> None:
    model = DesiredModel(model="fashion", version=version, generation=generation)
    pool.registry.write_desired("edge", encode(Desired(agent="edge", models=[model])))


@asynccontextmanager
async def running(agent: Agent) -> AsyncIterator[Agent]:
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(agent.updates.run())
        yield agent
        assert not task.done(), task
        task.cancel()


async def test_each_chunk_is_pulled_once_and_the_version_serves_after_a_restart(
    tmp_path: Path, pool: Pool, publish: Publish
) -> None:
    publish("1")
    desire(pool, "1", 1)
    async with running(Agent(tmp_path, pool)) as agent:
        await agent.serves("1")
        assert agent.swapped == ["1"]
        assert pool.chunks("1") == dict.fromkeys(range(6), 1)
        assert agent.parts() == []
    again = Agent(tmp_path, pool)
    assert again.state == ("1", State.SWAPPED, None)
    assert again.store.bundle("fashion", "1").manifest.version == "1"


async def test_a_chunk_that_came_damaged_is_asked_for_again(
    tmp_path: Path, pool: Pool, publish: Publish
) -> None:
    publish("1")
    desire(pool, "1", 1)
    pool.spoiled = {0, 5}
    async with running(Agent(tmp_path, pool)) as agent:
        await agent.serves("1")
    assert pool.chunks("1") == {0: 2, 1: 1, 2: 1, 3: 1, 4: 1, 5: 2}


async def test_a_pull_goes_on_where_it_was_when_the_link_was_lost(
    tmp_path: Path, pool: Pool, publish: Publish
) -> None:
    publish("1")
    desire(pool, "1", 1)

    def lose_link(index: int) -> None:
        if index == 3:
            pool.up = False

    pool.before_chunk = lose_link
    async with running(Agent(tmp_path, pool)) as agent:
        await agent.until(lambda: pool.asked["chunk", "1", 3])
        await agent.until(lambda: agent.state == (None, State.IDLE, None))
        assert agent.swapped == []
        pool.before_chunk = lambda _index: None
        pool.up = True
        agent.updates.link_changed(up=True)
        await agent.serves("1")
    counts = pool.chunks("1")
    assert all(counts[index] == 1 for index in (0, 1))
    assert sum(counts.values()) <= 6 + 2  # At most what was in the window is again.


async def test_a_pull_goes_on_where_it_was_when_the_agent_was_ended(
    tmp_path: Path, pool: Pool, publish: Publish
) -> None:
    publish("1")
    desire(pool, "1", 1)

    def fall_silent(index: int) -> None:
        pool.deaf = index >= 3

    pool.before_chunk = fall_silent
    async with running(Agent(tmp_path, pool)) as agent:
        await agent.until(lambda: pool.asked["chunk", "1", 3])
        await agent.until(lambda: pool.asked["chunk", "1", 3] > 1)
    pool.before_chunk, pool.deaf = (lambda _index: None), False
    pool.asked.clear()
    async with running(Agent(tmp_path, pool)) as agent:
        await agent.serves("1")
    assert set(pool.chunks("1")) <= {2, 3, 4, 5}


async def test_what_is_desired_anew_in_the_midst_of_a_pull_wins(
    tmp_path: Path, pool: Pool, publish: Publish
) -> None:
    for version in ("1", "2"):
        publish(version)
    desire(pool, "1", 1)
    agent = Agent(tmp_path, pool)

    def change_mind(index: int) -> None:
        if index == 2 and not pool.chunks("2"):
            desire(pool, "2", 2)
            agent.updates.look_now()

    pool.before_chunk = change_mind
    async with running(agent):
        await agent.serves("2")
        assert agent.swapped == ["2"]
        assert len(pool.chunks("1")) < 6


async def test_a_refused_version_leaves_nothing_behind_and_does_not_block_the_next(
    tmp_path: Path, pool: Pool, publish: Publish
) -> None:
    for version in ("1", "2", "4"):
        publish(version)
    publish("3", key=generate_key())
    agent = Agent(tmp_path, pool)
    agent.bad["2"] = TrialFailed("fashion 2: golden outputs differ")
    async with running(agent):
        for generation, version in enumerate(("1", "2", "3", "9"), start=1):
            desire(pool, version, generation)
            agent.updates.look_now()
            if version == "1":
                await agent.serves("1")
                continue
            await agent.until(lambda: agent.updates.slots["fashion"].staged == version)  # noqa: B023 - awaited here
            await agent.until(lambda: agent.state[1] is State.REFUSED)
            assert agent.state[0] == "1"
            await agent.until(lambda: agent.files() == {"1", "slots.json"})
            await agent.until(lambda: agent.parts() == [])
        assert "no bundle fashion 9" in (agent.state[2] or "")
        # It is not tried again by itself, however often it is looked at.
        asked = sum(pool.asked.values())
        agent.updates.look_now()
        await agent.until(lambda: sum(pool.asked.values()) > asked)
        assert agent.state[1] is State.REFUSED
        desire(pool, "4", 9)
        agent.updates.look_now()
        await agent.serves("4")
        assert agent.swapped == ["1", "4"]


async def test_going_back_needs_no_pull(
    tmp_path: Path, pool: Pool, publish: Publish
) -> None:
    for version in ("1", "2"):
        publish(version)
    async with running(Agent(tmp_path, pool)) as agent:
        for generation, version in enumerate(("1", "2", "1", "2"), start=1):
            desire(pool, version, generation)
            agent.updates.look_now()
            await agent.serves(version)
        assert agent.swapped == ["1", "2", "1", "2"]
    assert pool.chunks("1") == pool.chunks("2") == dict.fromkeys(range(6), 1)


async def test_a_full_disk_in_an_update_stops_neither_the_agent_nor_a_later_try(
    tmp_path: Path, pool: Pool, publish: Publish
) -> None:
    publish("1")
    desire(pool, "1", 1)

    class FullDisk(ModelStore):
        full = True

        @override
        def save(self, slots: Any) -> None:
            if self.full:
                raise OSError(28, "No space left on device")
            super().save(slots)

    agent = Agent(tmp_path, pool)
    store = FullDisk(tmp_path / "models")
    agent.updates._store = store
    async with running(agent):
        await agent.until(lambda: pool.asked["desired", None, 0] >= 1)
        agent.updates.look_now()
        await agent.until(lambda: pool.asked["desired", None, 0] >= 2)
        store.full = False
        agent.updates.look_now()
        await agent.serves("1")


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"\xc1 nonsense",
        encode(Get(want="desired")),
        encode(Desired(agent="another", models=[DesiredModel(model="x", version="1")])),
    ],
    ids=["empty", "nonsense", "another message", "another agent's"],
)
async def test_a_desired_state_that_is_none_changes_nothing(
    tmp_path: Path, pool: Pool, publish: Publish, document: bytes
) -> None:
    publish("1", size=10)
    pool.registry.write_desired("edge", document)
    async with running(Agent(tmp_path, pool)) as agent:
        await agent.until(lambda: pool.asked["desired", None, 0])
        agent.updates.on_blob(b"nonsense")
        agent.updates.on_blob(encode(Blob(want="chunk", model="fashion", version="1")))
        assert agent.state == (None, State.IDLE, None)
        desire(pool, "1", 1)
        agent.updates.look_now()
        await agent.serves("1")


async def test_a_fault_of_our_own_in_an_update_is_reported_and_ends_nothing(
    tmp_path: Path, pool: Pool, publish: Publish
) -> None:
    for version in ("1", "2"):
        publish(version, size=10)
    desire(pool, "1", 1)
    agent = Agent(tmp_path, pool)
    agent.bad["1"] = ZeroDivisionError("a fault of ours")
    async with running(agent):
        await agent.until(lambda: "fault of ours" in (agent.state[2] or ""))
        assert agent.state[1] is State.REFUSED
        desire(pool, "2", 2)
        agent.updates.look_now()
        await agent.serves("2")
