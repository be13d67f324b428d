"""The fleet's database, opened by several processes: the same in both kinds."""

from __future__ import annotations

import multiprocessing
import sqlite3
from pathlib import Path

import pytest

from broker.messages import SlotReport, UpdatePolicy, Window
from fleet.adapters.state.database import DatabaseUnavailable, FleetDatabase
from fleet.adapters.state.versions import PublishedVersion
from fleet.core.devices import Device
from fleet.core.gates import DEFAULT_GATES, Decision, GateKind, Verdict
from fleet.core.rollouts import (
    AgentState,
    Course,
    Rollout,
    RolloutState,
    Told,
    Wave,
    WayBack,
    begun,
    next_generation,
)
from tests.fleet_places import KINDS, fresh_place

NOW_MS = 1_700_000_000_000


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a database can be made."""
    return fresh_place(request.param, request, tmp_path)


def version(number: str, at_ms: int = NOW_MS) -> PublishedVersion:
    return PublishedVersion("fashion", number, "0" * 64, 100, at_ms)


def test_what_was_written_is_there_after_reopening(place: str) -> None:
    device = Device(
        "a",
        NOW_MS,
        NOW_MS + 5,
        (SlotReport(model="fashion", active="1", state="refused", reason="é\0"),),
        {"answered": 2**60},
        {"runtime": "litert"},
        3,
    )
    first = Rollout(1, "fashion", "1", NOW_MS)
    second = Rollout(2, "fashion", "2", NOW_MS, frozenset({"b", "a"}))
    with FleetDatabase(place) as database, database.writing() as ledger:
        ledger.keep_device(device)
        ledger.keep_version(version("1"))
        ledger.keep_rollout(first)
        ledger.keep_rollout(second)
    with FleetDatabase(place) as database, database.reading() as ledger:
        assert ledger.devices() == {"a": device}
        assert ledger.device("b") is None
        assert ledger.versions() == [version("1")]
        assert ledger.rollouts() == [first, second]


def test_an_error_inside_undoes_all_of_it(place: str) -> None:
    with FleetDatabase(place) as database:
        with pytest.raises(RuntimeError, match="a crash"):
            keep_and_crash(database)
        with database.reading() as ledger:
            assert ledger.versions() == []


def keep_and_crash(database: FleetDatabase) -> None:
    with database.writing() as ledger:
        ledger.keep_version(version("1"))
        raise RuntimeError("a crash")


def test_publishing_again_keeps_the_first_time(place: str) -> None:
    with FleetDatabase(place) as database:
        for at_ms in (NOW_MS, NOW_MS + 9):
            with database.writing() as ledger:
                ledger.keep_version(version("1", at_ms))
        with database.reading() as ledger:
            assert ledger.versions() == [version("1", NOW_MS)]


def test_a_rollout_and_its_course_are_there_after_reopening(place: str) -> None:
    new = Rollout(
        1,
        "fashion",
        "2",
        NOW_MS,
        query="site=lyon",
        epoch=4,
        way_back=WayBack("1", 5),
        waves=(Wave(share=0.01, soak_s=60, shadow=True), Wave(count=10), Wave()),
        gates=DEFAULT_GATES,
        policy=UpdatePolicy(probation_s=5, window=Window(days=[0], start_minute=60)),
    )
    failed = Verdict(GateKind.SPILL, Decision.FAIL, 300, 0.2, 0.15, 0.25, "20 %")
    told = {
        "a": Told(
            "a", 0, NOW_MS, AgentState.REFUSED, NOW_MS, 7, "1", "é", True, "1", 2
        ),
        "b": Told("b", 1, NOW_MS),
    }
    course = Course(
        state=RolloutState.PAUSED,
        since_ms=NOW_MS + 1,
        wave=1,
        settled_at_ms=NOW_MS,
        reason="spill",
        approved=0,
        waived=frozenset({GateKind.SPILL}),
        verdicts=(failed,),
        told=told,
    )
    with FleetDatabase(place) as database, database.writing() as ledger:
        ledger.keep_rollout(new)
        assert ledger.courses([new]) == {1: begun(new)}
        ledger.keep_course(1, course)
        ledger.keep_told(1, told.values())
        ledger.keep_told(1, [told["b"]])
    with FleetDatabase(place) as database, database.reading() as ledger:
        assert ledger.rollouts() == [new]
        assert ledger.courses([new]) == {1: course}
        assert ledger.rollout_states() == {1: RolloutState.PAUSED}
        assert ledger.told_of(["b", "c"]) == {"b": {1: told["b"]}}


@pytest.mark.timeout(180)  # three interpreters start
def test_processes_that_open_and_write_at_once_all_succeed(place: str) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=start_rollouts, args=(place,)) for _ in range(3)]
    for each in writers:
        each.start()
    for each in writers:
        each.join(150)
    assert [each.exitcode for each in writers] == [0, 0, 0]
    with FleetDatabase(place) as database, database.reading() as ledger:
        generations = [each.generation for each in ledger.rollouts()]
    assert generations == list(range(1, 31))


def start_rollouts(place: str) -> None:
    with FleetDatabase(place) as database:
        for _ in range(10):
            with database.writing() as ledger:
                generation = next_generation(ledger.rollouts(), ())
                ledger.keep_rollout(Rollout(generation, "fashion", "1", NOW_MS))


def test_a_reader_sees_the_state_before_an_unfinished_write(place: str) -> None:
    with FleetDatabase(place) as database:
        with database.writing() as writing:
            writing.keep_version(version("1"))
            with database.reading() as reading:
                assert reading.versions() == []
        with database.reading() as reading:
            assert len(reading.versions()) == 1


def test_a_writer_that_waits_too_long_says_so(place: str) -> None:
    with (
        FleetDatabase(place) as database,
        FleetDatabase(place, timeout_s=0.1) as other,
        database.writing(),
        pytest.raises(DatabaseUnavailable, match="try again"),
        other.writing(),
    ):
        pytest.fail("two writers at once")


def test_a_file_that_is_no_database_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "f.db"
    path.write_bytes(b"a letter to my aunt" * 100)
    with (
        pytest.raises(DatabaseUnavailable, match="choose another home"),
        FleetDatabase(path),
    ):
        pytest.fail("opened a letter")
    assert path.read_bytes().startswith(b"a letter")


def test_a_schema_of_the_future_is_refused_by_number(tmp_path: Path) -> None:
    path = tmp_path / "f.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with (
        pytest.raises(
            DatabaseUnavailable, match="schema 0099, this program knows 0003"
        ),
        FleetDatabase(path),
    ):
        pytest.fail("opened the future")


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with (
        pytest.raises(DatabaseUnavailable, match="check the folder"),
        FleetDatabase(tmp_path / "absent" / "f.db"),
    ):
        pytest.fail("opened nothing")
