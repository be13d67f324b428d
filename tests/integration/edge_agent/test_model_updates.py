"""Signed versions over a real broker and worker: proved on probation, or returned."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from broker.codec import encode
from broker.messages import Desired, DesiredModel, UpdatePolicy
from broker.node import Node
from bundle import layout
from bundle.delta.offering import offer_delta
from bundle.pack import pack
from bundle.seal import Seal, make_seal
from edge_agent.adapters.model_store import ModelStore
from edge_agent.app import Agent
from edge_agent.core.accounts import Accounts
from edge_agent.core.served import Served
from edge_agent.core.slots import Slots, State
from edge_agent.loops.loading import Loading, LoadingSettings
from edge_agent.settings import AgentSettings
from lifecycle.clock import SystemClock
from tests.integration.edge_agent.edge import (
    SHIRT,
    SMALL,
    on_probation,
    pool_models,
    until_status,
    worker,
)
from tests.trust import FleetTrust

pytestmark = pytest.mark.timeout(120)  # a worker, and trials in processes


@dataclass(frozen=True)
class Operators:
    """They publish what is signed, and say what is desired."""

    folder: Path
    trust: FleetTrust

    def publish(
        self, version: str, epoch: int, *, keys: tuple[str, ...] = (), **changes: Any
    ) -> Seal:
        """The bundle of the pool's own model, unsure of every answer, changed as given."""
        folder = self.folder / version
        shutil.copytree(SMALL, folder)
        path = folder / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["decision"]["threshold"] = 1.0
        manifest.pop("calibration", None)
        path.write_text(json.dumps({**manifest, "version": version, **changes}))
        packed = self.folder / f"{version}.tar"
        pack(folder, packed)
        made = make_seal(packed, "fashion", version)
        seal = made.model_copy(update={"epoch": epoch})
        self.trust.repository.draft_seals("fashion", [(seal, False)])
        self.trust.sign(*keys)
        self.trust.tree.write_copy(layout.blob(seal.sha256), packed)
        return seal

    def desire(self, version: str, generation: int, **more: Any) -> None:
        """Of `agent-1`."""
        model = DesiredModel(
            model="fashion", version=version, generation=generation, **more
        )
        data = encode(Desired(agent="agent-1", models=[model]))
        self.trust.tree.write(f"{layout.DESIRED}/agent-1", data)


@pytest.fixture
def operators(tmp_path: Path) -> Operators:
    return Operators(
        tmp_path, FleetTrust(tmp_path / "fleet", SystemClock().wall_ms() / 1000)
    )


@pytest.fixture
def updated(
    rabbit: Node, operators: Operators, short_tmp: Path
) -> Iterator[Callable[..., AgentSettings]]:
    """Settings of an agent whose pool serves the operators' registry too."""
    root = short_tmp / "root.json"
    root.write_bytes(operators.trust.root())

    def made(**more: Any) -> AgentSettings:
        usual: dict[str, Any] = {
            "agent_id": "agent-1",
            "state_dir": short_tmp / "agent",
            "cloud_url": rabbit.mqtt_url("agent-1"),
            "local": False,
            "trusted_root": root,
            "disk_reserve_bytes": 0,
            "poll_desired_every_s": 0.5,
            "look_spread_s": 0.0,
            "pull_jitter_s": 0.0,
        }
        return AgentSettings(**{**usual, **more})

    models = pool_models(short_tmp / "pool")
    registry = ("--registry", str(operators.trust.registry))
    with worker(rabbit.amqp_url("worker"), models, *registry):
        yield made


@asynccontextmanager
async def asked_for_ever(agent: Agent) -> AsyncIterator[list[str | None]]:
    """A camera that never stops; gives which version each answer came from."""
    answered: list[str | None] = []

    async def ask() -> None:
        while True:
            answer = await agent.infer("fashion", SHIRT)
            assert answer.status == "answered", answer
            answered.append(answer.version)

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(ask())
        yield answered
        assert not task.done()
        task.cancel()


def slots_are(state: State, active: str | None) -> Callable[[dict[str, Any]], bool]:
    def holds(status: dict[str, Any]) -> bool:
        model = status["models"].get("fashion")
        return model is not None and (model["state"], model["active"]) == (
            state,
            active,
        )

    return holds


async def test_a_good_version_is_committed_and_one_with_shuffled_labels_is_found_out(
    updated: Callable[..., AgentSettings], operators: Operators
) -> None:
    labels = json.loads((SMALL / "manifest.json").read_text())["labels"]
    operators.publish("v1", 1)
    operators.publish("v2", 3, labels=[*labels[1:], labels[0]])
    watched = UpdatePolicy(probation_s=0.2, probation_requests=25)
    operators.desire("v1", 1, epoch=1, policy=watched)
    async with Agent(updated()) as agent:
        await until_status(agent, slots_are(State.PROBATION, "v1"), 40)
        async with asked_for_ever(agent):
            status = await until_status(agent, slots_are(State.SWAPPED, "v1"), 40)
            assert status["models"]["fashion"]["floor"] == 1
            await until_status(agent, agreed(25), 40)
            # Beside the active version it answers nothing, and is compared with it.
            operators.desire("v2", 2, epoch=3, shadow=True)
            await until_status(agent, slots_are(State.SHADOW, "v1"), 40)
            await until_status(agent, compared(5), 40)
            (slot,) = agent._status.report().slots
            assert slot.health is not None
            assert slot.before is not None
            assert slot.health.with_active >= slot.health.compared
            assert slot.health.agreed == slot.health.with_active_agreed == 0
            assert slot.before.agreed >= 25
            # What it is compared with the cloud on decides, however long it may take.
            patient = UpdatePolicy(probation_s=3600.0)
            operators.desire("v2", 3, epoch=3, policy=patient)
            status = await until_status(agent, slots_are(State.RETURNED, "v1"), 60)
        model = status["models"]["fashion"]
        assert (model["serving"], model["staged"], model["floor"]) == ("v1", "v2", 1)
        assert "it agrees with the cloud on 0 of" in model["reason"]
        report = agent._status.report()
        (slot,) = report.slots
        assert (slot.state, slot.epoch, slot.floor) == ("returned", 1, 1)
        assert slot.health is not None
        assert slot.health.requests >= 25
        assert slot.health.p99_ms is not None
        facts = {"machine", "os", "runtime", "memory_mb", "free_disk_mb", "clock"}
        assert facts <= report.facts.keys()


def agreed(count: int) -> Callable[[dict[str, Any]], bool]:
    return lambda status: health(status)["agreed"] >= count


def compared(count: int) -> Callable[[dict[str, Any]], bool]:
    return lambda status: health(status)["compared"] >= count


def health(status: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = status["models"]["fashion"]["health"]
    return found


@pytest.fixture
def crashed(short_tmp: Path) -> Callable[[int], AgentSettings]:
    """The settings of an agent that crashed so often with version 2 on probation."""

    def made(starts: int) -> AgentSettings:
        store, slots = on_probation(short_tmp, UpdatePolicy(probation_s=99.0))
        for _ in range(starts - 1):
            slots = slots.started()
        store.save(slots)
        return AgentSettings(
            agent_id="agent-1",
            state_dir=short_tmp / "agent",
            local=False,
            disk_reserve_bytes=0,
        )

    return made


async def test_an_agent_makes_a_version_of_a_delta_and_what_it_serves(
    updated: Callable[..., AgentSettings], operators: Operators
) -> None:
    first = operators.publish("v1", 1)
    second = operators.publish("v2", 3, answers="provisional")
    operators.desire("v1", 1, epoch=1)
    async with Agent(updated()) as agent:
        await until_status(agent, slots_are(State.SWAPPED, "v1"), 40)
        offer = offer_delta(operators.trust.tree, first.sha256, second.sha256)
        assert 0 < offer.size_bytes < second.size_bytes // 100
        # Nothing but the delta can bring it.
        operators.trust.tree.delete(layout.blob(second.sha256))
        operators.desire("v2", 2, epoch=3)
        await until_status(agent, slots_are(State.SWAPPED, "v2"), 40)


async def test_whoever_holds_broker_registry_and_one_key_gets_nothing_installed(
    updated: Callable[..., AgentSettings], operators: Operators
) -> None:
    operators.publish("v1", 3)
    operators.publish("v0", 1)
    evil = operators.publish("evil", 4, keys=("targets-1",))
    target = layout.seal_target("fashion", "evil", 4)
    operators.trust.tree.write(
        f"{layout.TARGETS}/{target}", evil.model_dump_json().encode()
    )
    operators.desire("v1", 1, epoch=3)
    async with Agent(updated()) as agent:
        await until_status(agent, slots_are(State.SWAPPED, "v1"), 40)
        operators.desire("evil", 2, epoch=4)
        said = await until_status(agent, slots_are(State.REFUSED, "v1"), 40)
        assert f"{target} is not signed" in said["models"]["fashion"]["reason"]
        # What was signed once, and is older than what serves.
        operators.desire("v0", 3, epoch=1)
        said = await until_status(
            agent, refused_for("nothing below epoch 3 is taken"), 40
        )
        assert said["models"]["fashion"]["serving"] == "v1"
        kept = {each.name for each in (agent.settings.state_dir / "models").rglob("v*")}
        assert kept == {"v1"}


def refused_for(reason: str) -> Callable[[dict[str, Any]], bool]:
    return lambda status: reason in (status["models"]["fashion"]["reason"] or "")


@pytest.mark.parametrize(
    ("starts", "serving", "state", "left"),
    [(2, "2", State.PROBATION, 2), (3, "1", State.RETURNED, 0)],
)
async def test_an_agent_that_crashed_in_a_probation_starts_with_what_is_still_allowed(
    crashed: Callable[[int], AgentSettings],
    starts: int,
    serving: str,
    state: State,
    left: int,
) -> None:
    settings = crashed(starts)
    async with Agent(settings) as agent:
        model = (await agent.status())["models"]["fashion"]
        assert (model["serving"], model["state"]) == (serving, state)
        assert (await agent.infer("fashion", SHIRT)).version == serving
    stored = ModelStore(settings.state_dir / "models").slots()["fashion"]
    # This one was stopped in order, and so counts for nothing.
    assert (stored.state, stored.starts) == (state, left)


async def test_a_version_on_probation_that_the_disk_has_damaged_returns(
    crashed: Callable[[int], AgentSettings],
) -> None:
    settings = crashed(1)
    model = settings.state_dir / "models" / "fashion" / "2" / "model.tflite"
    model.write_bytes(model.read_bytes()[:-8] + b"damaged!")
    async with Agent(settings) as agent:
        shown = (await agent.status())["models"]["fashion"]
        assert (shown["serving"], shown["state"]) == ("1", State.RETURNED)
        assert "cannot be loaded any more" in shown["reason"]


async def test_a_start_with_nothing_but_damaged_versions_says_that_none_is_active(
    crashed: Callable[[int], AgentSettings],
) -> None:
    settings = crashed(1)
    for version in ("1", "2"):
        model = settings.state_dir / "models" / "fashion" / version / "model.tflite"
        model.write_bytes(model.read_bytes()[:-8] + b"damaged!")
    async with Agent(settings) as agent:
        shown = (await agent.status())["models"]["fashion"]
        assert (shown["serving"], shown["active"]) == (None, None)
        assert shown["state"] == State.RETURNED


async def test_a_start_that_cannot_be_counted_serves_the_proved_version(
    crashed: Callable[[int], AgentSettings],
) -> None:
    class Full(ModelStore):
        @override
        def save(self, slots: Slots) -> None:
            raise OSError(28, "No space left on device")

    served: list[str] = []

    async def swap(model: Served) -> None:
        served.append(model.manifest.version)
        await model.runner.close()

    loading = Loading(
        store=Full(crashed(1).state_dir / "models"),
        settings=LoadingSettings(1, 8, 60.0, 512),
        accounts=Accounts(),
        swap=swap,
    )
    slots = (await loading.restore([]))["fashion"]
    assert (served, slots.state) == (["1"], State.RETURNED)
    assert "could not be counted" in (slots.reason or "")
