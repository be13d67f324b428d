"""What is kept of agents, versions and deeds, in both kinds of database."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import create_engine, text
from structlog.testing import capture_logs
from typing_extensions import override

from broker.messages import DesiredModel, SlotReport
from fleet.adapters.audit_head import AuditHead, HeadUnreadable
from fleet.adapters.state.database import DatabaseUnavailable, FleetDatabase
from fleet.adapters.state.devices import Retired, WrittenDesired
from fleet.adapters.state.engines import BadDatabaseUrl, read_place
from fleet.adapters.state.versions import PublishedVersion, VersionState
from fleet.core.audit import Head, faults
from fleet.core.devices import Device
from fleet.core.orders import BadOrder
from fleet.operator.examination import examine
from tests.fleet_places import KINDS, fresh_place
from tests.postgres import PrivatePostgres

NOW_MS = 1_700_000_000_000


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return fresh_place(request.param, request, tmp_path)


@pytest.fixture
def head(tmp_path: Path) -> AuditHead:
    return AuditHead(tmp_path / "home.audit-head")


@pytest.fixture
def database(place: str, head: AuditHead) -> Iterator[FleetDatabase]:
    with FleetDatabase(place, head=head, timeout_s=5) as opened:
        yield opened


def device(agent: str) -> Device:
    return Device(agent, NOW_MS, NOW_MS, (SlotReport(model="fashion", active="1"),))


def record(database: FleetDatabase, *subjects: str) -> None:
    with database.writing() as ledger:
        for each in subjects:
            ledger.record("alice@desk", "device.label", each, {"a": 1}, at_ms=NOW_MS)


def tamper(place: str, *statements: str) -> None:
    engine = create_engine(read_place(place))
    with engine.begin() as connection:
        for each in statements:
            connection.execute(text(each))
    engine.dispose()


def test_many_devices_are_written_together_and_found_by_name(
    database: FleetDatabase,
) -> None:
    many = [device(f"a{number:04}") for number in range(1200)]
    with database.writing() as ledger:
        ledger.keep_devices(many)
        ledger.keep_devices([])
    with database.reading() as ledger:
        assert list(ledger.devices().values()) == many
        assert len(ledger.devices_named([each.agent for each in many] + ["x"])) == 1200


def test_text_that_no_database_keeps_stops_no_report(database: FleetDatabase) -> None:
    odd = "é\0\U0001f600\u2028\ud7ff"
    slot = SlotReport(model="fashion", reason=odd)
    with database.writing() as ledger:
        ledger.keep_device(
            Device("a", 1, 2, (slot,), {"n": 2**60}, {"board": odd, odd: "x"})
        )
        ledger.retire(Retired("b", 1, odd, odd))
        ledger.record(odd, odd, odd, {odd: odd}, at_ms=1)
    with database.reading() as ledger:
        found = ledger.devices()["a"]
        assert found.slots[0].reason == odd
        assert found.facts["board"] == odd
        assert "\0" not in ledger.retired()["b"].reason
        assert list(faults(ledger.audit())) == []


def test_labels_are_changed_key_by_key(database: FleetDatabase) -> None:
    with database.writing() as ledger:
        ledger.set_labels(["a", "b"], {"site": "lyon", "rack": "1"})
        ledger.set_labels(["a"], {"rack": "2"})
        ledger.drop_labels(["b"], ["site", "none"])
        ledger.drop_labels([], ["rack"])
    with database.reading() as ledger:
        assert ledger.labels() == {
            "a": {"rack": "2", "site": "lyon"},
            "b": {"rack": "1"},
        }


def test_a_retired_agent_is_not_among_the_devices_but_still_known(
    database: FleetDatabase,
) -> None:
    with database.writing() as ledger:
        ledger.keep_devices([device("a"), device("b")])
        ledger.set_labels(["a"], {"site": "lyon"})
        ledger.keep_desired([WrittenDesired("a", 1, "00", ())])
        ledger.retire(Retired("a", NOW_MS, "alice@desk", "broken"))
    with database.reading() as ledger:
        assert list(ledger.devices()) == ["b"]
        assert ledger.device("a") == device("a")
        assert ledger.retired() == {"a": Retired("a", NOW_MS, "alice@desk", "broken")}
        assert ledger.labels() == {}
        assert ledger.desired(["a"]) == {}
    with database.writing() as ledger:
        assert ledger.readmit("a")
        assert not ledger.readmit("a")
        assert list(ledger.devices()) == ["a", "b"]


def test_what_was_desired_is_kept_whole(database: FleetDatabase) -> None:
    models = (DesiredModel(model="fashion", version="2", generation=7, epoch=4),)
    written = WrittenDesired("a", 7, "ab" * 32, models)
    with database.writing() as ledger:
        ledger.keep_desired([written, WrittenDesired("b", 7, "00", ())])
        ledger.keep_desired([WrittenDesired("b", 8, "11", models)])
    with database.reading() as ledger:
        assert ledger.desired(["a", "x"]) == {"a": written}
        assert ledger.desired(["b"])["b"].generation == 8


def test_a_draft_that_is_signed_later_keeps_its_time(database: FleetDatabase) -> None:
    draft = PublishedVersion(
        "fashion", "2", "ab", 9, NOW_MS, 4, VersionState.DRAFT, {"memory_mb": 64}
    )
    with database.writing() as ledger:
        ledger.keep_version(draft)
    with database.writing() as ledger:
        ledger.keep_version(PublishedVersion("fashion", "2", "ab", 9, NOW_MS + 5, 4))
        (version,) = ledger.versions()
    assert version.state is VersionState.SIGNED
    assert version.published_at_ms == NOW_MS
    with database.writing() as ledger:
        ledger.drop_version("fashion", "2")
        assert ledger.versions() == []


def test_a_deed_is_recorded_with_what_it_did_or_not_at_all(
    database: FleetDatabase, head: AuditHead
) -> None:
    with pytest.raises(RuntimeError, match="a crash"):
        label_and_crash(database)
    with database.reading() as ledger:
        assert list(ledger.audit()) == []
    assert head.read() is None
    record(database, "a", "b")
    with database.reading() as ledger:
        assert [each.sequence for each in ledger.audit()] == [1, 2]
        assert ledger.audit_head() == head.read()


def label_and_crash(database: FleetDatabase) -> None:
    with database.writing() as ledger:
        ledger.record("alice@desk", "device.label", "a", at_ms=NOW_MS)
        raise RuntimeError("a crash")


def test_the_newest_entries_are_chosen_by_who_what_and_subject(
    database: FleetDatabase,
) -> None:
    with database.writing() as ledger:
        ledger.record("alice@desk", "rollout.start", "fashion 1", at_ms=NOW_MS)
        ledger.record("bob@desk", "rollout.pause", "fashion 1", at_ms=NOW_MS)
        ledger.record(
            "bob@desk",
            "device.label",
            "2 agents",
            {"agents": ["a", "a1"]},
            at_ms=NOW_MS,
        )

    def found(last: int = 9, **chosen: str) -> list[int]:
        with database.reading() as ledger:
            return [each.sequence for each in ledger.newest_audit(last, **chosen)]

    assert found(2) == [2, 3]
    assert found(who="bob@desk") == [2, 3]
    assert found(what="rollout") == [1, 2]
    assert found(what="roll") == []
    assert found(what="rollout.pause") == [2]
    assert found(subject="a") == [3]
    assert found(subject="fashion 1") == [1, 2]
    assert found(subject="%") == []


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE audit SET who = 'mallory' WHERE sequence = 2", "entry 2 was changed"),
        ("DELETE FROM audit WHERE sequence = 3", "entry 3 is missing"),
        (
            "DELETE FROM audit WHERE sequence > 2",
            "entry 4 is missing: the log ends at 2",
        ),
        ("DELETE FROM audit", "entry 4 is missing: the log ends at 0"),
    ],
)
def test_whatever_is_done_to_the_log_is_found_and_said_where(
    statement: str, said: str, place: str, database: FleetDatabase, head: AuditHead
) -> None:
    record(database, "a", "b", "c", "d")
    assert examine(database, head).faults == ()
    tamper(place, statement)
    assert said in " / ".join(each.reason for each in examine(database, head).faults)


def test_entries_that_changed_places_are_found(
    place: str, database: FleetDatabase, head: AuditHead
) -> None:
    record(database, "a", "b", "c")
    tamper(
        place,
        "UPDATE audit SET sequence = 99 WHERE sequence = 1",
        "UPDATE audit SET sequence = 1 WHERE sequence = 2",
        "UPDATE audit SET sequence = 2 WHERE sequence = 99",
    )
    assert [each.sequence for each in examine(database, head).faults][:2] == [1, 1]


def test_the_head_beside_the_home_is_not_moved_by_a_log_that_lost_it(
    place: str, database: FleetDatabase, head: AuditHead
) -> None:
    record(database, "a", "b", "c")
    kept = head.read()
    tamper(place, "DELETE FROM audit WHERE sequence > 1")
    record(database, *"defgh")
    assert head.read() == kept
    (fault,) = examine(database, head).faults
    assert fault.sequence == 3
    assert "not the one that was kept elsewhere" in fault.reason


class Overtaken(AuditHead):
    """The head as a process keeps it that another one overtakes after its commit."""

    def __init__(self, path: Path, other: FleetDatabase) -> None:
        super().__init__(path)
        self._other = other

    @override
    def keep(self, head: Head) -> None:
        """Let the other one commit and keep its own first."""
        record(self._other, "of the other")
        super().keep(head)


def test_of_two_processes_the_later_entry_is_kept_whoever_keeps_last(
    place: str, database: FleetDatabase, head: AuditHead
) -> None:
    with FleetDatabase(place, head=Overtaken(head.path, database)) as slow:
        record(slow, "its own")
    with database.reading() as ledger:
        assert head.read() == ledger.audit_head()
    tamper(place, "DELETE FROM audit WHERE sequence = 2")
    (fault,) = examine(database, head).faults
    assert "its end was removed" in fault.reason


def test_a_head_that_another_process_is_keeping_is_waited_for_and_not_for_ever(
    head: AuditHead,
) -> None:
    folder = os.open(head.path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        with pytest.raises(TimeoutError, match="another process"):
            AuditHead(head.path, timeout_s=0.05).keep(Head(1, "ab"))
    finally:
        os.close(folder)
    head.keep(Head(1, "ab"))
    assert head.read() == Head(1, "ab")


def test_a_head_noted_elsewhere_is_looked_for(
    database: FleetDatabase, head: AuditHead
) -> None:
    record(database, "a", "b", "c")
    with database.reading() as ledger:
        noted = next(iter(ledger.audit())).digest
    assert examine(database, head, noted.upper()).since_named == 2
    assert examine(database, head, noted[:12]).since_named == 2
    (fault,) = examine(database, head, "0" * 64).faults
    assert "no entry has the digest" in fault.reason
    with pytest.raises(BadOrder, match="is no head"):
        examine(database, head, "xyz")


def test_a_head_that_cannot_be_kept_is_a_warning_and_not_a_failure(
    place: str, tmp_path: Path
) -> None:
    gone = AuditHead(tmp_path / "absent" / "head")
    with FleetDatabase(place, head=gone) as database, capture_logs() as logs:
        record(database, "a")
        with database.reading() as ledger:
            assert ledger.audit_head().sequence == 1
    assert [each["log_level"] for each in logs] == ["warning"]


def test_a_head_file_that_holds_something_else_is_said(
    database: FleetDatabase, head: AuditHead
) -> None:
    head.path.write_text(json.dumps(["no", "head"]))
    with pytest.raises(HeadUnreadable, match="holds no head"):
        examine(database, head)


def test_an_older_copy_of_the_home_is_found_out(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    head = AuditHead(tmp_path / "home.audit-head")
    with FleetDatabase(home / "fleet.db", head=head) as database:
        record(database, "a")
    shutil.copytree(home, tmp_path / "backup")
    with FleetDatabase(home / "fleet.db", head=head) as database:
        record(database, "b")
    shutil.rmtree(home)
    (tmp_path / "backup").rename(home)
    with FleetDatabase(home / "fleet.db", head=head) as database:
        (fault,) = examine(database, head).faults
    assert "an older copy was restored" in fault.reason


def test_a_server_that_drops_every_connection_is_come_back_to(
    postgres: PrivatePostgres,
) -> None:
    place = postgres.fresh()
    with FleetDatabase(place) as database:
        record(database, "a")
        with pytest.raises(DatabaseUnavailable, match="connection broke off"):
            record_while_dropped(database, place)
        record(database, "b")
        with database.reading() as ledger:
            assert [each.subject for each in ledger.audit()] == ["a", "b"]


def record_while_dropped(database: FleetDatabase, place: str) -> None:
    with database.writing() as ledger:
        ledger.record("alice@desk", "device.label", "x", at_ms=NOW_MS)
        with psycopg.connect(place, autocommit=True) as other:
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://user:secret@host/x", "cannot be in mysql"),
        ("postgresql://user:secret@host:port/x", "cannot be read"),
        ("sqlite://", "use a path"),
    ],
)
def test_a_place_that_is_none_is_refused_without_its_password(
    url: str, said: str
) -> None:
    with pytest.raises(BadDatabaseUrl, match=said) as caught:
        FleetDatabase(url)
    assert "secret" not in str(caught.value)


def test_a_server_that_is_not_there_is_said_without_the_password(
    free_port: int,
) -> None:
    url = f"postgresql://fleet:secret@127.0.0.1:{free_port}/fleet"
    with (
        pytest.raises(DatabaseUnavailable, match="check host and port") as caught,
        FleetDatabase(url),
    ):
        pytest.fail("opened nothing")
    assert "secret" not in str(caught.value)
    assert f"fleet:***@127.0.0.1:{free_port}/fleet" in str(caught.value)
