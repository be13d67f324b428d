"""Reports into the database, with deliveries that come from no broker."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from typing_extensions import override

from broker.backoff import Backoff
from broker.codec import decode, encode, seal_envelope
from broker.messages import Desired, HealthReport, Report, SlotReport
from bundle import layout
from bundle.folder_tree import FolderTree
from bundle.source import NotThere
from bundle.trust.repository import Repository
from fleet.adapters.registry import Registry
from fleet.adapters.state.database import FleetDatabase
from fleet.adapters.trust_home import TrustHome
from fleet.core.devices import Device
from fleet.core.rollouts import Rollout, RolloutState, next_generation
from fleet.loops.conductor import Conductor
from fleet.loops.inventory import Inventory
from lifecycle.clock import FakeClock


class Letter:
    """A delivery that remembers whether it was acknowledged."""

    def __init__(self, body: bytes, agent: str = "a", key: str | None = None) -> None:
        self.routing_key = f"e1.{agent}.up.tel" if key is None else key
        self.body = body
        self.acked = 0

    def ack(self) -> None:
        self.acked += 1


class Home:
    """A fleet's state in a folder, and who was told."""

    def __init__(self, folder: Path, database: FleetDatabase) -> None:
        self.path = folder / "f.db"
        self.database = database
        self.clock = FakeClock()
        self.tree = FolderTree(folder / "registry")
        repository = Repository(self.tree, folder / "trust", lambda: 0.0)
        self.registry = Registry(
            self.tree, TrustHome(repository, folder / "trust", lambda _: None)
        )
        self.told: list[str] = []
        self.conductor: Conductor

    async def hint(self, agents: Sequence[str]) -> None:
        self.told.extend(agents)

    def inventory(self) -> Inventory:
        self.conductor = Conductor(
            self.database, self.registry, clock=self.clock, hint=self.hint
        )
        return Inventory(
            self.database,
            clock=self.clock,
            heard=self.conductor.heard,
            prefetch=50,
            backoff=Backoff(0.01, 0.02),
        )

    def devices(self) -> dict[str, Device]:
        with self.database.reading() as ledger:
            return ledger.devices()

    def start(self, version: str, *targets: str, model: str = "fashion") -> Rollout:
        with self.database.writing() as ledger:
            new = Rollout(
                generation=next_generation(ledger.rollouts(), ()),
                model=model,
                version=version,
                started_at_ms=self.clock.wall_ms(),
                targets=frozenset(targets) or None,
            )
            ledger.keep_rollout(new)
        return new

    def desired(self, agent: str) -> list[tuple[str, str, int]] | None:
        try:
            data = self.tree.read(layout.desired(agent), max_bytes=10**6)
        except NotThere:
            return None
        (desired,) = decode(data, Desired).items
        assert desired.agent == agent
        return [(each.model, each.version, each.generation) for each in desired.models]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with FleetDatabase(tmp_path / "f.db", timeout_s=0.05) as database:
        yield Home(tmp_path, database)


@asynccontextmanager
async def running(inventory: Inventory) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(inventory.run())
        yield
        task.cancel()


async def deliver(inventory: Inventory, *letters: Letter) -> None:
    async with running(inventory), asyncio.timeout(10):
        for each in letters:
            await inventory.take(each)
        await inventory.settled()


async def conduct(home: Home, *letters: Letter) -> None:
    """Deliver, and look once."""
    await deliver(home.inventory(), *letters)
    async with asyncio.timeout(10):
        await home.conductor.look()


def report(*slots: SlotReport, agent: str = "a", **facts: str) -> Report:
    return Report(agent=agent, at_ms=1, slots=list(slots), facts=facts)


def slot(version: str, generation: int = 0) -> SlotReport:
    return SlotReport(model="fashion", active=version, generation=generation)


async def test_a_report_is_in_the_inventory_before_it_is_acknowledged(
    home: Home,
) -> None:
    seen: list[bool] = []

    class Watching(Letter):
        @override
        def ack(self) -> None:
            super().ack()
            seen.append("a" in home.devices())

    await deliver(home.inventory(), Watching(encode(report(slot("1"), runtime="x"))))
    assert seen == [True]
    device = home.devices()["a"]
    assert device.facts == {"runtime": "x"}
    assert device.slots == (slot("1"),)
    assert device.first_seen_ms == home.clock.wall_ms()


async def test_the_agent_is_who_the_broker_says_and_not_who_it_claims(
    home: Home,
) -> None:
    await deliver(home.inventory(), Letter(encode(report(agent="victim")), "mallory"))
    assert list(home.devices()) == ["mallory"]


async def test_many_reports_are_written_in_order_and_each_acknowledged_once(
    home: Home,
) -> None:
    letters = [
        Letter(encode(report(slot(str(number)))), f"a{number % 3}")
        for number in range(300)
    ]
    await deliver(home.inventory(), *letters)
    assert [each.acked for each in letters] == [1] * 300
    devices = home.devices()
    assert {name: each.slots[0].active for name, each in devices.items()} == {
        "a0": "297",
        "a1": "298",
        "a2": "299",
    }
    assert devices["a0"].reports == 100


@pytest.mark.parametrize(
    ("key", "body"),
    [
        ("e1.a.up.tel", b""),
        ("e1.a.up.tel", b"\xc1"),
        ("e1.a.up.tel", b"{}" * 5000),
        ("e1.a.up.tel", encode(report())[:-3]),
        ("e1.a.up.tel", encode(report()).replace(b"\xa1v\x01", b"\xa1v\x02")),
        ("e1.a.up.tel", seal_envelope(Report, [b"\x80"])),
        ("e1.a.up.tel", encode(Desired(agent="a"))),
        ("e1.A/B.up.tel", encode(report())),
        ("e1", encode(report())),
        ("", encode(report())),
    ],
)
async def test_what_is_no_report_is_counted_acknowledged_and_harms_no_neighbour(
    key: str, body: bytes, home: Home
) -> None:
    inventory = home.inventory()
    bad, good = Letter(body, key=key), Letter(encode(report()), "good")
    await deliver(inventory, bad, good)
    assert (bad.acked, good.acked, inventory.malformed) == (1, 1, 1)
    assert list(home.devices()) == ["good"]


async def test_a_report_with_an_endless_number_is_not_kept_and_holds_nobody_up(
    home: Home,
) -> None:
    inventory = home.inventory()
    endless = HealthReport(p50_ms=float("inf"))
    bad = Report(
        agent="a", at_ms=1, slots=[SlotReport(model="fashion", health=endless)]
    )
    letters = [Letter(encode(bad)), Letter(encode(Report(agent="b", at_ms=1)), "b")]
    async with running(inventory):
        for letter in letters:
            await inventory.take(letter)
        await inventory.settled()
    assert [each.acked for each in letters] == [1, 1]
    assert set(home.devices()) == {"b"}
    assert inventory.malformed == 1


async def test_a_good_report_beside_a_bad_one_counts(home: Home) -> None:
    inventory = home.inventory()
    body = seal_envelope(
        Report, [b"\x80", b"\x83\xa5agent\xa1a\xa5at_ms\x01\xa5slots\x90"]
    )
    await deliver(inventory, Letter(body))
    assert inventory.malformed == 1
    assert home.devices()["a"].reports == 1


async def test_reports_wait_unacknowledged_while_the_database_is_locked(
    home: Home,
) -> None:
    inventory, letter = home.inventory(), Letter(encode(report()))
    async with running(inventory):
        with closing(sqlite3.connect(home.path)) as other:
            other.execute("BEGIN IMMEDIATE")
            await inventory.take(letter)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await inventory.settled()
            assert letter.acked == 0
            other.rollback()
        async with asyncio.timeout(10):
            await inventory.settled()
    assert letter.acked == 1
    assert list(home.devices()) == ["a"]


async def test_a_new_agent_gets_what_was_rolled_out_to_all_and_is_told_once(
    home: Home,
) -> None:
    home.start("1")
    newest = home.start("2")
    home.start("3", "somebody-else")
    await conduct(home, Letter(encode(report())))
    assert home.desired("a") == [("fashion", "2", newest.generation)]
    assert home.told == ["a"]
    await conduct(home, Letter(encode(report())))
    assert home.told == ["a"]


async def test_of_an_agent_that_no_rollout_reaches_nothing_is_desired(
    home: Home,
) -> None:
    home.start("1", "b")
    await conduct(home, Letter(encode(report())))
    assert home.desired("a") is None
    assert home.told == []


async def test_the_outcome_of_a_rollout_is_written_with_its_time_and_reason(
    home: Home,
) -> None:
    new = home.start("2")
    await conduct(home, Letter(encode(report()), "a"), Letter(encode(report()), "b"))
    refused = SlotReport(
        model="fashion",
        active="1",
        state="refused",
        reason="golden input 3 differs",
        generation=new.generation,
    )
    await conduct(home, Letter(encode(report(refused)), "a"))
    since_ms = home.clock.wall_ms()
    home.clock.advance(5)
    await conduct(
        home,
        Letter(encode(report(refused)), "a"),
        Letter(encode(report(slot("2", new.generation))), "b"),
    )
    with home.database.reading() as ledger:
        course = ledger.courses([new])[new.generation]
    told = {
        agent: (each.state.value, each.version, each.reason, each.since_ms)
        for agent, each in course.told.items()
    }
    assert told == {
        "a": ("refused", "1", "golden input 3 differs", since_ms),
        "b": ("updated", "2", None, since_ms + 5000),
    }
    assert course.state is RolloutState.FAILED
    assert course.reason == "1 agent (a) did not take it"


async def test_held_reports_are_bounded(home: Home) -> None:
    inventory = home.inventory()
    for _ in range(50):
        await inventory.take(Letter(encode(report())))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await inventory.take(Letter(encode(report())))
