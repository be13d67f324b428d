"""What operators type about agents and the record: here, and on servers elsewhere."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from broker.codec import decode
from broker.messages import Desired, HealthReport, Report, SlotReport
from bundle import layout
from bundle.open_tree import open_tree
from bundle.source import NotThere
from fleet.__main__ import app
from fleet.app import Fleet
from fleet.core.devices import observe
from fleet.operator.collecting import collect, find_unneeded
from fleet.settings import FleetSettings
from tests.postgres import PrivatePostgres
from tests.seaweed import PrivateSeaweed

pytestmark = pytest.mark.timeout(120)

Say = Callable[..., Result]
HOUR_MS = 3_600_000


@pytest.fixture(params=["here", "elsewhere"])
def home(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trusted_home: Callable[[Path], Path],
) -> Iterator[Path]:
    """A home with its files, or with a PostgreSQL and a bucket in place of them."""
    made = trusted_home(tmp_path / "home")
    monkeypatch.setenv("OVERSPILL_FLEET_HOME", str(made))
    monkeypatch.setenv("OVERSPILL_FLEET_ACTOR", "alice@desk")
    monkeypatch.delenv("OVERSPILL_FLEET_AMQP_URL", raising=False)
    if request.param == "here":
        yield made
        return
    server: PrivatePostgres = request.getfixturevalue("postgres")
    monkeypatch.setenv("OVERSPILL_FLEET_DATABASE", server.fresh())
    store: PrivateSeaweed = request.getfixturevalue("seaweed")
    for name, value in store.environment().items():
        monkeypatch.setenv(name, value)
    place = store.fresh()
    monkeypatch.setenv("OVERSPILL_FLEET_REGISTRY", place)
    local = open_tree(made / "registry")
    files = {each.path: local.read(each.path, max_bytes=10**6) for each in local.list()}
    open_tree(place).write_all(files)
    yield made
    assert {each.path for each in local.list()} == set(files)
    assert not (made / "fleet.db").exists()


@pytest.fixture
def say(home: Path) -> Say:
    def said(*words: str | Path) -> Result:
        return CliRunner().invoke(app, [str(each) for each in words])

    return said


def ok(result: Result) -> str:
    assert result.exit_code == 0, result.output
    return result.stdout


def told(result: Result) -> Any:
    return json.loads(ok(result))


def failure(result: Result) -> str:
    assert result.exit_code == 1, result.output
    return result.stderr


def publish(say: Say, folder: Path, version: str) -> None:
    folder = folder / f"fashion-{version}"
    folder.mkdir()
    (folder / "model.tflite").write_bytes(os.urandom(3000))
    manifest = {"format": 1, "name": "fashion", "version": version}
    (folder / "manifest.json").write_text(
        json.dumps({**manifest, "model_file": "model.tflite"})
    )
    ok(say("model", "publish", folder))


def report(agent: str, *slots: SlotReport, **facts: str) -> None:
    """As the daemon writes what an agent says."""
    with Fleet(FleetSettings()) as fleet, fleet.database.writing() as ledger:
        said = Report(agent=agent, at_ms=1, slots=list(slots), facts=facts)
        now_ms = fleet.clock.wall_ms()
        ledger.keep_device(observe(ledger.device(agent), agent, said, now_ms))


def desired(agent: str) -> list[str] | None:
    tree = open_tree(FleetSettings().registry)
    try:
        data = tree.read(layout.desired(agent), max_bytes=10**6)
    except NotThere:
        return None
    (document,) = decode(data, Desired).items
    return [each.version for each in document.models]


def test_an_agent_from_its_first_report_to_its_retirement(
    say: Say, tmp_path: Path
) -> None:
    publish(say, tmp_path, "1")
    report("a", runtime="litert", free_disk_mb="900")
    report("b", runtime="litert", free_disk_mb="20")
    ok(say("device", "label", "a", "b", "site=lyon", "rack=1"))
    assert told(say("device", "label", "b", "rack-", "--json")) == [
        {"agent": "b", "labels": {"site": "lyon"}}
    ]
    chosen = ["--where", "site=lyon and free_disk_mb >= 64", "--json"]
    assert [each["agent"] for each in told(say("device", "list", *chosen))] == ["a"]
    labelled = say("device", "label", "--where", "has rack", "group=canary", "--json")
    assert told(labelled) == [
        {"agent": "a", "labels": {"group": "canary", "rack": "1", "site": "lyon"}}
    ]

    ok(say("rollout", "start", "fashion", "1"))
    assert desired("a") == ["1"]
    health = HealthReport(for_s=60, requests=100, compared=10, agreed=9, p50_ms=1.5)
    report("a", SlotReport(model="fashion", active="1", generation=1, health=health))
    shown = ok(say("device", "show", "a"))
    assert "group=canary, rack=1, site=lyon" in shown
    assert "desired  fashion 1 (generation 1" in shown
    assert "9 of 10 agreed with the cloud, p50 1.5 ms" in shown
    assert "rollout  1, fashion 1:" in shown
    assert "device.label by alice@desk" in shown
    document = told(say("device", "show", "a", "--json"))
    assert document["desired"][0]["version"] == "1"
    assert document["history"][0]["generation"] == 1

    printed = ok(say("device", "retire", "a", "--reason", "water"))
    assert "rabbitmqctl delete_user a" in printed
    assert desired("a") is None
    assert [each["agent"] for each in told(say("device", "list", "--json"))] == ["b"]
    assert "by alice@desk: water" in ok(say("device", "show", "a"))
    # It reports again, and is still not told anything.
    report("a")
    ok(say("rollout", "start", "fashion", "1"))
    assert desired("a") is None
    assert "is retired: take it back with" in failure(
        say("device", "label", "a", "x=1")
    )

    ok(say("device", "retire", "--undo", "a"))
    # What it was told before it is told again: it may come back empty.
    assert desired("a") == ["1"]
    report("a")
    ok(say("rollout", "start", "fashion", "1"))
    assert desired("a") == ["1"]
    assert told(say("device", "show", "a", "--json"))["labels"] == {}


def test_everything_an_operator_does_is_on_record_and_the_record_is_whole(
    say: Say, home: Path, tmp_path: Path
) -> None:
    assert "empty" in ok(say("audit", "verify"))
    publish(say, tmp_path, "1")
    report("a")
    ok(say("device", "label", "a", "site=lyon"))
    noted = told(say("audit", "verify", "--json"))
    assert noted["whole"] is True
    assert noted["kept"] == noted["head"]
    ok(say("rollout", "start", "fashion", "1"))
    ok(say("device", "retire", "a"))
    entries = told(say("audit", "list", "--json"))
    whats = [each["what"] for each in entries]
    for what in ("model.publish", "device.label", "rollout.start", "device.retire"):
        assert what in whats
    assert {each["who"] for each in entries} <= {"alice@desk", "conductor"}
    listed = ok(say("audit", "list", "--what", "device"))
    assert "device.label" in listed
    assert "rollout.start" not in listed
    since = told(say("audit", "verify", "--head", noted["head"]["digest"], "--json"))
    assert since["entries_since_head"] == len(entries) - noted["entries"]
    assert f"{len(entries)} entries" in ok(say("audit", "verify"))

    with Fleet(FleetSettings()) as fleet, fleet.database.writing() as ledger:
        ledger._connection.exec_driver_sql("DELETE FROM audit WHERE sequence = 2")
    result = say("audit", "verify")
    assert "entry 2 is missing" in failure(result)
    assert result.stdout == ""


def test_what_nobody_needs_is_cleared_from_the_registry(
    say: Say, tmp_path: Path
) -> None:
    publish(say, tmp_path, "1")
    tree = open_tree(FleetSettings().registry)
    (needed,) = (each.path for each in tree.list(layout.BLOBS))
    tree.write(layout.blob("f" * 64), b"left by a publication that died")
    assert "everything in the registry is needed" in ok(say("model", "gc"))

    with Fleet(FleetSettings()) as fleet:
        now_ms = fleet.clock.wall_ms() + 48 * HOUR_MS
        found = find_unneeded(
            fleet.database, fleet.registry, fleet.tree, before_ms=now_ms
        )
        assert [each.path for each in found.blobs] == [layout.blob("f" * 64)]
        collect(fleet.database, fleet.tree, found, who=fleet.who, now_ms=now_ms)
    assert [each.path for each in tree.list(layout.BLOBS)] == [needed]
    assert "model.gc" in ok(say("audit", "list"))


@pytest.mark.parametrize("home", ["here"], indirect=True)
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["device", "show", "x"], "'x' has never reported"),
        (["device", "label", "x", "a=1"], "'x' has never reported"),
        (["device", "label", "a=1"], "no agent is named"),
        (["device", "label", "--where", "a=", "a=1"], "expected a value"),
        (["device", "list", "--where", "("], "--where: character"),
        (["device", "retire", "x"], "'x' has never reported"),
        (["device", "retire", "--undo", "x"], "'x' is not retired"),
        (["audit", "verify", "--head", "zz"], "is no head"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], said: str, say: Say) -> None:
    lines = failure(say(*words)).splitlines()
    assert len(lines) == 1
    assert said in lines[0]


@pytest.mark.parametrize("home", ["here"], indirect=True)
@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("DATABASE", "mysql://u:secret@h/x", "use a path for SQLite"),
        ("DATABASE", "postgresql://u:secret@127.0.0.1:1/x", "check host and port"),
        ("REGISTRY", "gs://bucket", "use a folder or s3://bucket/prefix"),
    ],
)
def test_a_place_that_cannot_be_used_is_one_line_without_its_password(
    name: str, value: str, said: str, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"OVERSPILL_FLEET_{name}", value)
    lines = failure(say("device", "list")).splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert "secret" not in lines[0]
