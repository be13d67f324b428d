"""Databases of earlier programs are carried over; those of later ones are refused."""

from __future__ import annotations

import json
import multiprocessing
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, text

from fleet.adapters.state.database import DatabaseUnavailable, FleetDatabase
from fleet.adapters.state.engines import read_place
from fleet.adapters.state.schema import KNOWN, MIGRATIONS, NEWEST
from fleet.adapters.state.tables import METADATA
from tests.fleet_places import KINDS, fresh_place

NOW_MS = 1_700_000_000_000
# As the program before there were migrations made it.
SCHEMA_1 = """
CREATE TABLE devices (agent VARCHAR NOT NULL, first_seen_ms INTEGER NOT NULL,
  last_seen_ms INTEGER NOT NULL, reports INTEGER NOT NULL, slots JSON NOT NULL,
  counters JSON NOT NULL, facts JSON NOT NULL, PRIMARY KEY (agent));
CREATE TABLE versions (model VARCHAR NOT NULL, version VARCHAR NOT NULL,
  sha256 VARCHAR NOT NULL, size_bytes INTEGER NOT NULL, key_id VARCHAR NOT NULL,
  published_at_ms INTEGER NOT NULL, PRIMARY KEY (model, version));
CREATE TABLE rollouts (generation INTEGER NOT NULL, model VARCHAR NOT NULL,
  version VARCHAR NOT NULL, targets JSON, started_at_ms INTEGER NOT NULL,
  state VARCHAR NOT NULL, state_since_ms INTEGER NOT NULL, PRIMARY KEY (generation));
CREATE TABLE results (generation INTEGER NOT NULL, agent VARCHAR NOT NULL,
  state VARCHAR NOT NULL, version VARCHAR, reason VARCHAR, since_ms INTEGER NOT NULL,
  PRIMARY KEY (generation, agent));
PRAGMA user_version = 1;
"""


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return fresh_place(request.param, request, tmp_path)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "old.db"
    slots = json.dumps([{"model": "fashion", "active": "1", "state": "idle"}])
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(SCHEMA_1)
        connection.executemany(
            "INSERT INTO devices VALUES (?, 1, 2, 3, ?, '{}', '{}')",
            [("a", slots), ("b", slots)],
        )
        connection.execute(
            "INSERT INTO versions VALUES ('fashion', '1', 'ab', 7, 'key', ?)", (NOW_MS,)
        )
        connection.executemany(
            "INSERT INTO rollouts VALUES (?, 'fashion', ?, ?, ?, ?, ?)",
            [
                (1, "1", None, NOW_MS, "done", NOW_MS),
                (2, "2", '["b"]', NOW_MS, "in_progress", NOW_MS),
            ],
        )
        connection.execute(
            "INSERT INTO results VALUES (1, 'a', 'updated', '1', NULL, ?)", (NOW_MS,)
        )
        connection.commit()
    return path


def test_what_migrations_make_is_what_the_tables_say(place: str) -> None:
    with FleetDatabase(place):
        pass
    engine = create_engine(read_place(place))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, METADATA) == []
    engine.dispose()


def test_the_schemas_that_are_known_are_those_that_have_a_migration() -> None:
    script = ScriptDirectory(str(MIGRATIONS))
    made = [each.revision for each in script.walk_revisions()]
    assert tuple(reversed(made)) == KNOWN
    assert KNOWN[-1] == NEWEST


def test_a_database_from_before_migrations_is_carried_over(old: Path) -> None:
    with FleetDatabase(old) as database, database.reading() as ledger:
        assert sorted(ledger.devices()) == ["a", "b"]
        assert ledger.devices()["a"].slots[0].active == "1"
        (version,) = ledger.versions()
        assert (version.version, version.epoch, version.state) == ("1", 0, "draft")
        assert [(each.generation, each.targets) for each in ledger.rollouts()] == [
            (1, None),
            (2, frozenset({"b"})),
        ]
        # Whom a rollout reached it had told, whether or not it had reported since.
        assert [(each.generation, each.state) for each in ledger.passages("b", 9)] == [
            (1, "pending"),
            (2, "pending"),
        ]
        assert [each.state for each in ledger.passages("a", 9)] == ["updated"]


def test_a_program_from_before_migrations_refuses_what_was_carried_over(
    old: Path,
) -> None:
    with FleetDatabase(old):
        pass
    with closing(sqlite3.connect(old)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)


def test_a_migration_that_fails_leaves_the_database_as_it_was(old: Path) -> None:
    with closing(sqlite3.connect(old)) as connection:
        connection.execute("CREATE TABLE audit (mine TEXT)")
        connection.commit()
    before = old.read_bytes()
    with pytest.raises(DatabaseUnavailable, match="audit"), FleetDatabase(old):
        pytest.fail("opened")
    with closing(sqlite3.connect(old)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        tables = {
            name for (name,) in connection.execute("SELECT name FROM sqlite_master")
        }
    assert "labels" not in tables
    assert len(before) == old.stat().st_size


def test_a_newer_schema_is_refused_by_name(place: str) -> None:
    with FleetDatabase(place):
        pass
    engine = create_engine(read_place(place))
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0099'"))
    engine.dispose()
    with (
        pytest.raises(
            DatabaseUnavailable, match=f"schema 0099, this program knows {NEWEST}"
        ),
        FleetDatabase(place),
    ):
        pytest.fail("opened the future")


@pytest.mark.timeout(150)  # two interpreters start
def test_processes_that_migrate_at_once_find_it_done_once(old: Path) -> None:
    context = multiprocessing.get_context("spawn")
    openers = [context.Process(target=open_once, args=(str(old),)) for _ in range(2)]
    for each in openers:
        each.start()
    for each in openers:
        each.join(60)
    assert [each.exitcode for each in openers] == [0, 0]


def open_once(place: str) -> None:
    with FleetDatabase(place) as database, database.reading() as ledger:
        assert len(ledger.rollouts()) == 2
