"""What an operator types, against a home of its own and no RabbitMQ."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from broker.codec import decode
from broker.messages import CascadeReport, Desired, Report, SlotReport
from bundle import layout
from bundle.delta.offer import read_offer
from bundle.folder_tree import FolderTree
from bundle.pack import unpack
from bundle.seal import read_seal, verify_packed
from bundle.source import NotThere
from bundle.trust.client import look
from fleet.__main__ import app
from fleet.adapters.state.database import DatabaseUnavailable, FleetDatabase
from fleet.app import Fleet, run_daemon
from fleet.core.devices import observe
from fleet.core.rollouts import Rollout
from fleet.settings import FleetSettings
from lifecycle.clock import SystemClock

Say = Callable[..., Result]


@pytest.fixture
def home(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trusted_home: Callable[[Path], Path],
) -> Path:
    monkeypatch.setenv("OVERSPILL_FLEET_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OVERSPILL_FLEET_AMQP_URL", raising=False)
    return trusted_home(tmp_path / "home")


@pytest.fixture
def say(home: Path) -> Say:
    def said(*words: str | Path) -> Result:
        return CliRunner().invoke(app, [str(each) for each in words])

    return said


@pytest.fixture
def source(tmp_path: Path) -> Callable[[str], Path]:
    def made(version: str, name: str = "fashion") -> Path:
        folder = tmp_path / f"{name}-{version}"
        folder.mkdir(exist_ok=True)
        (folder / "model.tflite").write_bytes(version.encode() * 1000)
        (folder / "manifest.json").write_text(
            json.dumps(
                {
                    "format": 1,
                    "name": name,
                    "version": version,
                    "model_file": "model.tflite",
                }
            )
        )
        return folder

    return made


Source = Callable[[str], Path]


def report(home: Path, agent: str, *slots: SlotReport) -> None:
    """As the daemon writes what an agent says."""
    now_ms = SystemClock().wall_ms()
    said = Report(agent=agent, at_ms=1, slots=list(slots), facts={"runtime": "litert"})
    with FleetDatabase(home / "fleet.db") as database, database.writing() as ledger:
        ledger.keep_device(observe(ledger.device(agent), agent, said, now_ms))


def slot(active: str | None, generation: int = 0, **more: Any) -> SlotReport:
    return SlotReport(model="fashion", active=active, generation=generation, **more)


def document_of(home: Path, agent: str) -> bytes | None:
    tree = FolderTree(home / "registry")
    try:
        return tree.read(layout.desired(agent), max_bytes=10**6)
    except NotThere:
        return None


def desired(home: Path, agent: str) -> list[tuple[str, str, int]]:
    data = document_of(home, agent)
    assert data is not None
    (document,) = decode(data, Desired).items
    return [(each.model, each.version, each.generation) for each in document.models]


def failure(result: Result) -> str:
    """The one line of a failed command."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    lines = [
        line for line in result.stderr.splitlines() if not line.startswith("warning: ")
    ]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


def test_a_published_version_is_listed_and_can_be_verified_and_unpacked(
    say: Say, source: Source, home: Path, tmp_path: Path
) -> None:
    result = say("model", "publish", source("1"))
    assert result.exit_code == 0, result.output

    (listed,) = json.loads(say("model", "list", "--json").stdout)
    assert (listed["model"], listed["version"]) == ("fashion", "1")
    assert (listed["epoch"], listed["state"]) == (1, "signed")
    assert "fashion" in say("model", "list").stdout

    tree = FolderTree(home / "registry")
    found = look(
        (home / "trust" / "root.json").read_bytes(),
        tmp_path / "agent",
        [("registry", tree.piece)],
        clock_s=0.0,
        target=layout.seal_target("fashion", "1", 1),
    )
    seal = read_seal(found.target or b"")
    packed = tmp_path / "pulled.tar"
    packed.write_bytes(tree.read(layout.blob(seal.sha256), max_bytes=seal.size_bytes))
    verify_packed(packed, seal)
    manifest = unpack(packed, tmp_path / "slot", seal=seal)
    assert (manifest.name, manifest.version) == ("fashion", "1")


def test_a_publish_offers_deltas_from_what_agents_serve(
    say: Say, source: Source, home: Path
) -> None:
    say("model", "publish", source("1"))
    report(home, "a", slot("1"))
    told = json.loads(say("model", "publish", source("2"), "--json").stdout)
    assert told["version"] == "2"
    tree = FolderTree(home / "registry")
    (path,) = [each.path for each in tree.list(layout.DELTAS)]
    offer = read_offer(tree.read(path, max_bytes=1000))
    assert 0 < offer.size_bytes < 1000
    assert tree.size(layout.blob(offer.sha256)) == offer.size_bytes
    # The same again makes nothing new.
    say("model", "publish", source("2"))
    assert [each.path for each in tree.list(layout.DELTAS)] == [path]


def test_the_way_back_is_what_most_agents_serve_that_are_there(
    say: Say, source: Source, home: Path
) -> None:
    for version in ("1", "2"):
        say("model", "publish", source(version))
    report(home, "agent-1", slot("1"))
    report(home, "agent-2", slot("2"))
    # As many serve the one as the other: then it is the newer.
    third = json.loads(say("model", "publish", source("3"), "--json").stdout)
    assert third["way_back"]["version"] == "2"
    # Two that are gone for good have no say.
    report(home, "agent-0", slot("1"))
    with FleetDatabase(home / "fleet.db") as database, database.writing() as ledger:
        for each in (ledger.devices()["agent-0"], ledger.devices()["agent-1"]):
            ledger.keep_device(replace(each, last_seen_ms=each.last_seen_ms - 10**6))
    fourth = json.loads(say("model", "publish", source("4"), "--json").stdout)
    assert fourth["way_back"]["version"] == "2"


def test_the_way_back_of_a_rollout_on_its_way_stays_signed_whatever_is_published(
    say: Say, source: Source, home: Path
) -> None:
    for version in ("1", "2"):
        say("model", "publish", source(version))
    report(home, "agent-1", slot("1"))
    assert say("rollout", "start", "fashion", "2").exit_code == 0
    with Fleet(FleetSettings(home=home)) as fleet:
        (begun,) = fleet.rollouts.progress()
        back = begun.rollout.way_back
        assert back is not None
        for number in range(3, 9):
            fleet.publish(source(str(number)))
        names = fleet.trust.repository.names("fashion", drafted=False)
    ways = [each for each in names if each.back]
    assert (back.version, back.epoch) in {(each.version, each.epoch) for each in ways}
    assert len(ways) == 5


def state_of(say: Say, generation: int) -> str:
    told = json.loads(say("rollout", "status", str(generation), "--json").stdout)
    (one,) = told["rollouts"]
    return str(one["state"])


def test_only_a_rollback_that_would_bring_nobody_back_is_refused_with_what_to_do(
    say: Say, source: Source, home: Path
) -> None:
    for version in ("1", "2"):
        say("model", "publish", source(version))
    report(home, "agent-1", slot("1"))
    report(home, "agent-2", slot("1"))
    at_once = ("--waves", "all", "--no-gates")
    say("rollout", "start", "fashion", "2", "--agents", "agent-1", *at_once)
    report(home, "agent-1", slot("2", generation=1, state="swapped"))
    say("model", "publish", source("3"))
    say("rollout", "start", "fashion", "3", "--agents", "agent-2", *at_once)
    report(home, "agent-2", slot("3", generation=3, state="swapped"))
    with Fleet(FleetSettings(home=home)) as fleet:
        for number in range(4, 8):
            fleet.publish(source(str(number)))
    gone = failure(say("rollout", "rollback", "1"))
    assert "rollout 1 of fashion 2: the way back to 1 is not signed any more" in gone
    assert "publish what it held under a new version" in gone
    # Nothing was begun: it is as it was.
    assert state_of(say, 1) == "done"
    # The newest keeps its way back, however much is published since.
    assert "rolling back" in say("rollout", "rollback", "3").stdout
    assert desired(home, "agent-2") == [("fashion", "2", 4)]
    say("rollout", "start", "fashion", "7", "--agents", "agent-1", *at_once)
    say("rollout", "abort", "fashion")
    followed = failure(say("rollout", "rollback", "1"))
    assert "its agents follow rollout 5 of fashion 7 (aborted) by now" in followed
    assert "overspill rollout rollback 5" in followed
    # From one that has gone back itself nothing leads back: that is not offered.
    say("rollout", "rollback", "5")
    followed = failure(say("rollout", "rollback", "1"))
    assert "follow rollout 5 of fashion 7 (rolling back) by now" in followed
    assert "overspill rollout rollback" not in followed
    assert "start a rollout of the version to serve" in followed


def test_a_rollout_that_ended_as_it_began_is_told_as_a_failure(
    say: Say, source: Source, home: Path
) -> None:
    for version in ("1", "2"):
        say("model", "publish", source(version))
    report(home, "agent-1", slot("1", floor=99))
    came = say("rollout", "start", "fashion", "2", "--agents", "agent-1")
    assert came.exit_code == 1
    assert (
        "was aborted: none of its agents is left: agent-1 (it takes no" in came.stderr
    )


def test_what_was_stored_and_not_recorded_is_on_record_after_the_next_try(
    source: Source, home: Path
) -> None:
    settings = FleetSettings(home=home, database_timeout_s=0.05)
    with Fleet(settings) as fleet, FleetDatabase(home / "fleet.db") as other:
        with other.writing(), pytest.raises(DatabaseUnavailable):
            fleet.publish(source("1"))
        assert not fleet.publish(source("1")).new
        with fleet.database.reading() as ledger:
            assert [each.what for each in ledger.audit()] == ["model.publish"]
        fleet.publish(source("1"))
        with fleet.database.reading() as ledger:
            assert len(list(ledger.audit())) == 1


def test_publishing_twice_changes_nothing(say: Say, source: Source) -> None:
    first = json.loads(say("model", "publish", source("1"), "--json").stdout)
    second = json.loads(say("model", "publish", source("1"), "--json").stdout)
    assert (first["new"], first["visible"]) == (True, True)
    assert (second["new"], second["visible"]) == (False, True)
    assert (first["sha256"], first["epoch"]) == (second["sha256"], second["epoch"])
    assert "already published" in say("model", "publish", source("1")).stdout


def test_other_contents_under_a_published_version_are_refused(
    say: Say, source: Source
) -> None:
    folder = source("1")
    say("model", "publish", folder)
    (folder / "model.tflite").write_bytes(b"other")
    assert "give this one a new version" in failure(say("model", "publish", folder))
    assert len(json.loads(say("model", "list", "--json").stdout)) == 1


def test_a_folder_that_is_no_bundle_is_refused_in_one_line(
    say: Say, source: Source, tmp_path: Path
) -> None:
    assert "manifest.json" in failure(say("model", "publish", tmp_path / "absent"))
    folder = source("1")
    (folder / "model.tflite").unlink()
    assert "model.tflite is named by the manifest" in failure(
        say("model", "publish", folder)
    )


def test_a_signing_key_that_others_can_read_is_not_used(
    say: Say, source: Source, home: Path
) -> None:
    (home / "trust" / "offline" / "targets-1.key").chmod(0o644)
    assert "chmod 600" in failure(say("model", "publish", source("2")))


def test_a_rollout_reaches_every_known_agent(
    say: Say, source: Source, home: Path
) -> None:
    say("model", "publish", source("1"))
    report(home, "a", slot(None))
    report(home, "b", slot(None))
    result = say("rollout", "start", "fashion", "1", "--json")
    assert result.exit_code == 0
    begun = json.loads(result.stdout)
    assert begun["targets"] is None
    assert [each["agent"] for each in begun["agents"]] == ["a", "b"]
    assert "OVERSPILL_FLEET_AMQP_URL" in begun["hint_error"]
    assert "learn at their next poll" in result.stderr
    for agent in "ab":
        assert desired(home, agent) == [("fashion", "1", begun["generation"])]


def test_a_rollout_to_some_leaves_the_others_where_they_are(
    say: Say, source: Source, home: Path
) -> None:
    for version in "12":
        say("model", "publish", source(version))
    for agent in "abc":
        report(home, agent, slot(None))
    say("rollout", "start", "fashion", "1")
    say("rollout", "start", "fashion", "2", "--agents", "a,c")
    assert [desired(home, agent)[0][1] for agent in "abc"] == ["2", "1", "2"]
    # Back again: a later rollout of the earlier version.
    say("rollout", "start", "fashion", "1", "--agents", "a")
    # 3 is kept for the second one's way back.
    assert desired(home, "a") == [("fashion", "1", 4)]


def test_two_models_are_desired_side_by_side(
    say: Say, source: Callable[..., Path], home: Path
) -> None:
    say("model", "publish", source("1"))
    say("model", "publish", source("9", "boots"))
    report(home, "a")
    say("rollout", "start", "fashion", "1")
    say("rollout", "start", "boots", "9")
    assert desired(home, "a") == [("boots", "9", 2), ("fashion", "1", 1)]


def test_status_tells_state_reason_version_and_age_of_each_agent(
    say: Say, source: Source, home: Path
) -> None:
    for version in "12":
        say("model", "publish", source(version))
    for agent in "abc":
        report(home, agent, slot("1"))
    say("rollout", "start", "fashion", "1")
    begun = json.loads(say("rollout", "start", "fashion", "2", "--json").stdout)
    generation = begun["generation"]
    report(home, "a", slot("2", generation, state="swapped"))
    report(
        home,
        "b",
        slot("1", generation, state="refused", reason="golden input 3 differs"),
    )

    (status,) = json.loads(say("rollout", "status", "--json").stdout)["rollouts"]
    assert (status["model"], status["version"]) == ("fashion", "2")
    assert status["state"] == "running"
    told = {each.pop("agent"): each for each in status["agents"]}
    assert all(0 <= each.pop("last_report_age_s") < 15 for each in told.values())
    assert {each.pop("wave") for each in told.values()} == {1}
    assert told == {
        "a": {"state": "updated", "version": "2", "reason": None},
        "b": {
            "state": "refused",
            "version": "1",
            "reason": "golden input 3 differs",
        },
        "c": {"state": "pending", "version": "1", "reason": None},
    }
    table = say("rollout", "status").stdout
    assert "golden input 3 differs" in table
    assert "1 of 3 updated" in table

    every = json.loads(say("rollout", "status", "--all", "--json").stdout)["rollouts"]
    assert [each["state"] for each in every] == ["running", "superseded"]


@contextmanager
def agent_that(home: Path, answers: Callable[[int], SlotReport]) -> Iterator[None]:
    """An agent `a` that reports once it is desired to serve something newer."""
    before = document_of(home, "a")

    def obey() -> None:
        give_up = time.monotonic() + 15
        while document_of(home, "a") == before:
            if time.monotonic() > give_up:
                return
            time.sleep(0.02)
        ((_, _, generation),) = desired(home, "a")
        report(home, "a", answers(generation))

    thread = threading.Thread(target=obey)
    thread.start()
    yield
    thread.join(45)


def test_waiting_ends_with_the_rollout(say: Say, source: Source, home: Path) -> None:
    for version in "12":
        say("model", "publish", source(version))
    report(home, "a", slot(None))

    with agent_that(home, lambda generation: slot("1", generation)):
        done = say("rollout", "start", "fashion", "1", "--wait", "10", "--json")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["state"] == "done"

    late = say("rollout", "start", "fashion", "2", "--wait", "0.3")
    assert late.exit_code == 1
    assert "is not done after 0.3 s: 0 of 1 agents updated" in late.stderr

    def refusal(generation: int) -> SlotReport:
        return slot("1", generation, state="refused", reason="unsupported operator")

    with agent_that(home, refusal):
        failed = say("rollout", "start", "fashion", "2", "--wait", "10")
    assert failed.exit_code == 1
    assert "failed: a: unsupported operator" in failed.stderr


def test_what_is_unknown_is_refused_and_the_known_are_named(
    say: Say, source: Source, home: Path
) -> None:
    assert "nothing is published yet" in failure(say("rollout", "start", "x", "1"))
    say("model", "publish", source("1"))
    assert "published are fashion" in failure(say("rollout", "start", "x", "1"))
    assert "published are 1" in failure(say("rollout", "start", "fashion", "7"))
    report(home, "a")
    assert "known are a" in failure(
        say("rollout", "start", "fashion", "1", "--agents", "a,typo")
    )
    assert json.loads(say("rollout", "status", "--json").stdout) == {"rollouts": []}


@pytest.mark.parametrize("url", ["amqp://f:x@127.0.0.1:{}/", "amqp://f@no.invalid/"])
def test_an_unreachable_rabbitmq_only_delays_a_rollout(
    url: str, say: Say, source: Source, home: Path, free_port: int
) -> None:
    say("model", "publish", source("1"))
    report(home, "a", slot(None))
    result = say(
        "rollout", "start", "fashion", "1", "--amqp-url", url.format(free_port)
    )
    assert result.exit_code == 0, result.output
    assert "warning: agents were not told and learn at their next poll" in result.stderr
    assert desired(home, "a") == [("fashion", "1", 1)]


def test_a_url_of_something_else_is_refused(
    say: Say, source: Source, home: Path
) -> None:
    say("model", "publish", source("1"))
    report(home, "a")
    result = say("rollout", "start", "fashion", "1", "--amqp-url", "http://x")
    assert "does not name an AMQP broker" in failure(result)


def test_devices_are_listed_with_what_they_serve(say: Say, home: Path) -> None:
    assert "no agent has reported yet" in say("device", "list").stdout
    assert json.loads(say("device", "list", "--json").stdout) == []
    report(home, "cam-1", slot("1"))
    (listed,) = json.loads(say("device", "list", "--json").stdout)
    assert listed["agent"] == "cam-1"
    assert listed["facts"] == {"runtime": "litert"}
    assert listed["slots"][0]["active"] == "1"
    assert listed["reports"] == 1
    table = say("device", "list").stdout
    assert "cam-1" in table
    assert "fashion 1" in table


def test_a_device_whose_promise_is_broken_or_whose_scores_drift_is_listed_so(
    say: Say, home: Path
) -> None:
    told = CascadeReport(
        threshold=0.4,
        calibrated=0.6,
        share=0.5,
        why="50% of the byte budget is left",
        target="at most 2 points worse than the cloud",
        standing="broken",
        value=0.041,
        low=0.03,
        high=0.06,
        drift=True,
    )
    say("device", "list")
    report(home, "cam-1", slot("1").model_copy(update={"cascade": told}))
    (listed,) = json.loads(say("device", "list", "--json").stdout)
    assert listed["slots"][0]["cascade"] == told.model_dump()
    table = say("device", "list").stdout
    assert "DRIFT" in table
    assert "broken" in table


@pytest.mark.parametrize(
    "words",
    [
        ["model", "publish", "."],
        ["model", "list"],
        ["rollout", "start", "fashion", "1"],
        ["rollout", "status"],
        ["device", "list"],
    ],
)
def test_a_home_that_is_no_folder_is_one_clear_line(
    words: list[str], say: Say, home: Path
) -> None:
    shutil.rmtree(home)
    home.write_text("a file")
    failure(say(*words))


def test_a_daemon_without_a_broker_to_listen_to_says_what_to_set(say: Say) -> None:
    assert "OVERSPILL_FLEET_AMQP_URL" in failure(say("fleet", "run"))
    assert "log level" in failure(
        say("fleet", "run", "--amqp-url", "amqp://h", "--log-level", "loud")
    )


def test_a_rollout_that_died_before_its_documents_is_completed_by_the_daemon(
    home: Path, free_port: int
) -> None:
    report(home, "a", slot(None))
    with Fleet(FleetSettings(home=home)) as fleet:
        with fleet.database.writing() as ledger:
            ledger.keep_rollout(Rollout(1, "fashion", "1", started_at_ms=1))

        async def run() -> None:
            stop = asyncio.Event()
            stop.set()
            await run_daemon(fleet, f"amqp://f:x@127.0.0.1:{free_port}/", stop)

        asyncio.run(run())
    assert desired(home, "a") == [("fashion", "1", 1)]


@pytest.mark.timeout(120)  # A real process starts, imports and ends.
def test_the_daemon_outlives_an_absent_broker_and_ends_clean_on_sigterm(
    home: Path, free_port: int
) -> None:
    environment = {
        **os.environ,
        "OVERSPILL_FLEET_AMQP_URL": f"amqp://fleet:secret@127.0.0.1:{free_port}/",
    }
    with subprocess.Popen(
        [sys.executable, "-m", "fleet", "fleet", "run"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as daemon:
        try:
            assert daemon.stderr is not None
            lines: list[dict[str, Any]] = []
            for line in daemon.stderr:
                lines.append(json.loads(line))
                if lines[-1]["event"] == "link down":
                    break
            daemon.send_signal(signal.SIGTERM)
            rest = daemon.stderr.read()
            assert daemon.wait(45) == 0
        finally:
            daemon.kill()
    assert f"127.0.0.1:{free_port}" in lines[-1]["error"]
    assert json.loads(rest.splitlines()[-1])["event"] == "fleet stopped"
    assert "secret" not in rest + str(lines)
