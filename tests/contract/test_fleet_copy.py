"""The fleet's whole state, copied from each kind of database into each."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text
from typer.testing import CliRunner, Result

from broker.messages import DesiredModel, SlotReport, UpdatePolicy
from fleet.__main__ import app
from fleet.adapters.audit_head import AuditHead
from fleet.adapters.state.database import FleetDatabase
from fleet.adapters.state.devices import Retired, WrittenDesired
from fleet.adapters.state.engines import make_engine, read_place
from fleet.adapters.state.tables import AUDIT
from fleet.adapters.state.versions import PublishedVersion
from fleet.adapters.state.whole import TABLES
from fleet.core.devices import Device
from fleet.core.gates import DEFAULT_GATES
from fleet.core.orders import BadOrder
from fleet.core.rollouts import AgentState, Course, Rollout, RolloutState, Told, WayBack
from fleet.operator.copying import Copied, copy_state
from fleet.operator.examination import examine
from tests.fleet_places import KINDS, fresh_place
from tests.postgres import PrivatePostgres

NOW_MS = 1_700_000_000_000
AGENTS = [f"agent-{each:04}" for each in range(1200)]


@pytest.fixture
def head(tmp_path: Path) -> AuditHead:
    return AuditHead(tmp_path / "home.audit-head")


@pytest.fixture
def source(tmp_path: Path, head: AuditHead) -> Iterator[FleetDatabase]:
    with FleetDatabase(tmp_path / "old.db", head=head) as database:
        fill(database)
        yield database


def fill(database: FleetDatabase) -> None:
    """Something of everything, with what is hard to carry over."""
    odd = "é\U0001f600\u2028"
    slot = SlotReport(model="fashion", active="1", reason=odd)
    models = (DesiredModel(model="fashion", version="2", generation=7, epoch=4),)
    one = Rollout(
        7,
        "fashion",
        "2",
        NOW_MS,
        frozenset(AGENTS[:3]),
        epoch=3,
        way_back=WayBack("1", 4),
        gates=DEFAULT_GATES,
        policy=UpdatePolicy(max_slowdown=1.1),
    )
    told = {each: Told(each, 0, NOW_MS, AgentState.REFUSED) for each in AGENTS[:3]}
    with database.writing() as ledger:
        ledger.keep_devices(
            Device(each, 1, 2**53, (slot,), {"n": 2**60}, {odd: "x"}) for each in AGENTS
        )
        ledger.set_labels(AGENTS[:2], {"site": odd})
        ledger.retire(Retired("agent-0009", 5, odd, "broken"))
        ledger.keep_desired([WrittenDesired("agent-0001", 7, "ab", models)])
        ledger.keep_version(PublishedVersion("fashion", "2", "ab", 9, NOW_MS, 3))
        ledger.keep_rollout(one)
        ledger.keep_rollout(Rollout(9, "boots", "1", NOW_MS, query="site=lyon"))
        ledger.keep_course(7, Course(RolloutState.FAILED, 3, told=told, reason=odd))
        ledger.keep_told(7, told.values())
        ledger.keep_event(7, "start", {"share": 0.1, "odd": odd}, at_ms=NOW_MS)
        for each in range(20):
            ledger.record(odd, "device.label", f"a{each}", {"n": 0.25}, at_ms=NOW_MS)


def copied_to(
    source: FleetDatabase, place: str, seen: list[tuple[int, int]] | None = None
) -> Copied:
    with FleetDatabase(place) as target:
        return copy_state(
            source,
            target,
            who="alice@desk",
            now_ms=NOW_MS,
            moved=lambda done, of: None if seen is None else seen.append((done, of)),
        )


@pytest.mark.parametrize("kind", KINDS)
def test_everything_arrives_and_the_audit_log_goes_on_where_it_was(
    kind: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    source: FleetDatabase,
    head: AuditHead,
) -> None:
    place, seen = fresh_place(kind, request, tmp_path), list[tuple[int, int]]()
    copied = copied_to(source, place, seen)
    assert all(copied.rows.values()), copied.rows
    assert (copied.rows["devices"], copied.rows["audit"]) == (1200, 21)
    assert seen[-1] == (sum(copied.rows.values()),) * 2
    assert copied.faults == ()
    with FleetDatabase(place, head=head) as target:
        with source.reading() as there, target.reading() as here:
            assert here.devices() == there.devices()
            assert here.retired() == there.retired()
            assert here.labels() == there.labels()
            assert here.desired(AGENTS) == there.desired(AGENTS)
            assert here.versions() == there.versions()
            assert here.rollouts() == there.rollouts()
            rollouts = here.rollouts()
            assert here.courses(rollouts) == there.courses(rollouts)
            assert here.events(7) == there.events(7)
            assert list(here.audit()) == list(there.audit())
            assert here.newest_audit(1)[0].what == "state.copy"
        # The head beside the home is of both.
        assert head.read() == copied.head
        with target.writing() as ledger:
            ledger.record("alice@desk", "rollout.pause", "7", at_ms=NOW_MS)
        assert examine(target, head).faults == ()
        assert head.read() == examine(target, head).head


def test_a_copy_comes_back_the_same(
    tmp_path: Path, source: FleetDatabase, postgres: PrivatePostgres
) -> None:
    place = postgres.fresh()
    copied_to(source, place)
    with FleetDatabase(place) as there:
        back = copied_to(there, str(tmp_path / "back.db"))
    assert back.rows["audit"] == 22
    with FleetDatabase(tmp_path / "back.db") as database, database.reading() as ledger:
        assert len(list(ledger.audit())) == 22
        assert len(ledger.devices()) == 1199


def test_a_server_that_ends_idle_transactions_waits_for_the_comparison(
    tmp_path: Path, source: FleetDatabase, postgres: PrivatePostgres
) -> None:
    place = postgres.fresh()
    copied_to(source, place)
    impatient = f"{place}{'&' if '?' in place else '?'}options=-c%20idle_in_transaction_session_timeout%3D200"

    def compares(done: int, of: int) -> None:
        if done == of:
            time.sleep(0.5)  # what millions of rows take

    with (
        FleetDatabase(impatient) as there,
        FleetDatabase(tmp_path / "back.db") as back,
    ):
        copied = copy_state(there, back, who="a", now_ms=NOW_MS, moved=compares)
        with there.reading() as ledger:
            assert ledger.audit_head() == copied.head


def test_a_database_with_something_in_it_is_not_written_over(
    tmp_path: Path, source: FleetDatabase
) -> None:
    with FleetDatabase(tmp_path / "other.db") as other, other.writing() as ledger:
        ledger.record("bob@desk", "device.label", "a", at_ms=NOW_MS)
    with pytest.raises(BadOrder, match="state already \\(1 audit\\): copy into a new"):
        copied_to(source, str(tmp_path / "other.db"))
    with pytest.raises(BadOrder, match="is where the state is already"):
        copied_to(source, str(tmp_path / "old.db"))
    (tmp_path / "by-another-name.db").symlink_to(tmp_path / "old.db")
    with pytest.raises(BadOrder, match="is where the state is already"):
        copied_to(source, str(tmp_path / "by-another-name.db"))
    with source.reading() as ledger:
        assert ledger.row_counts()["audit"] == 20


@pytest.mark.parametrize("kind", KINDS)
def test_what_arrives_otherwise_than_it_was_sent_is_not_kept(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, source: FleetDatabase
) -> None:
    place = fresh_place(kind, request, tmp_path)
    with FleetDatabase(place):
        pass
    engine = make_engine(read_place(place), timeout_s=1)
    with engine.begin() as connection:
        for each in FORGETS[kind]:
            connection.execute(text(each))
    engine.dispose()
    with pytest.raises(BadOrder, match="what arrived in devices is not what was sent"):
        copied_to(source, place)
    with FleetDatabase(place) as target, target.reading() as ledger:
        assert not any(ledger.row_counts().values())


# A database that forgets one device, as no database should.
FORGETS = {
    "sqlite": [
        (
            "CREATE TRIGGER forget AFTER INSERT ON devices WHEN new.agent = 'agent-0007' "
            "BEGIN DELETE FROM devices WHERE agent = 'agent-0007'; END"
        )
    ],
    "postgresql": [
        (
            "CREATE FUNCTION forget() RETURNS trigger AS $$ BEGIN RETURN NULL; END $$ "
            "LANGUAGE plpgsql"
        ),
        (
            "CREATE TRIGGER forget BEFORE INSERT ON devices FOR EACH ROW "
            "WHEN (new.agent = 'agent-0007') EXECUTE FUNCTION forget()"
        ),
    ],
}


def test_a_log_that_was_not_whole_is_copied_as_it_is_and_that_is_said(
    tmp_path: Path, source: FleetDatabase
) -> None:
    engine = make_engine(read_place(tmp_path / "old.db"), timeout_s=1)
    with engine.begin() as connection:
        connection.execute(AUDIT.update().values(who="mallory"))
    engine.dispose()
    assert len(copied_to(source, str(tmp_path / "new.db")).faults) == 20


def say(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(each) for each in words])


def test_an_operator_copies_the_state_and_goes_on_with_it(
    tmp_path: Path, postgres: PrivatePostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("OVERSPILL_FLEET_HOME", str(home))
    with FleetDatabase(
        home / "fleet.db", head=AuditHead(tmp_path / "home.audit-head")
    ) as database:
        fill(database)
    place = postgres.fresh()
    result = say("fleet", "copy", "--to", place, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["rows"].keys() == {each.name for each in TABLES}
    assert (told["audit_whole"], told["audit_head"]["sequence"]) == (True, 21)
    again = say("fleet", "copy", "--to", place)
    assert again.exit_code == 1
    assert again.stderr.startswith("error: ")
    assert "holds a fleet's state already (21 audit, 1 desired, 120" in again.stderr
    absent = say("fleet", "copy", "--to", tmp_path / "absent" / "x.db")
    assert (absent.exit_code, "check the folder" in absent.stderr) == (1, True)
    monkeypatch.setenv("OVERSPILL_FLEET_DATABASE", place)
    assert "the audit log is whole: 21 entries" in say("audit", "verify").stdout
    listed = json.loads(say("device", "list", "--json").stdout)
    assert len(listed) == 1199
    text_said = say("fleet", "copy", "--to", tmp_path / "back.db").stdout
    assert "1200 devices, 2 rollouts, 22 entries of the audit log" in text_said
    assert "set OVERSPILL_FLEET_DATABASE" in text_said
