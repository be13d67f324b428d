"""The outbox on a disk that is full or broken, and on files that are damaged."""

from __future__ import annotations

import random

import pytest
from structlog.testing import capture_logs

from tests.faults.rows.corruption import (
    DAMAGES,
    ROWS_OF_A_FILE,
    Damage,
    damage_often,
    files_of,
    rubbish_log,
    rubbish_page,
)
from tests.faults.rows.disk import TROUBLES, try_all


async def test_a_failing_disk_refuses_with_a_reason_and_loses_nothing() -> None:
    every_fifth = random.Random(3).sample(TROUBLES, len(TROUBLES) // 4)
    with capture_logs():
        trials = await try_all(every_fifth, cuts=5, seed=3)
    assert sum(trial.failures for trial in trials) > 20
    assert any(trial.refused for trial in trials)
    for trial in trials:
        assert trial.wrong == [], trial.trouble.name
        assert trial.cut.lost == [], trial.trouble.name
        assert trial.cut.wrong == [], trial.trouble.name


async def test_rows_behind_a_failed_sync_are_not_lost_with_the_power() -> None:
    log_syncs = [each for each in TROUBLES if each.name.startswith("sync error, log")]
    with capture_logs():
        trials = await try_all(log_syncs, cuts=20, seed=1)
    assert all(trial.failures for trial in trials)
    assert [trial.cut.lost for trial in trials] == [[]] * len(trials)
    assert [trial.cut.wrong for trial in trials] == [[]] * len(trials)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
async def test_an_outbox_opens_and_accepts_however_its_file_was_damaged(
    damage: Damage,
) -> None:
    files = await files_of(ROWS_OF_A_FILE, clean=True)
    with capture_logs() as logs:
        found = await damage_often(files, damage, tries=6, seed=1)
    assert found.wrong == []
    reports = [log for log in logs if log["event"].endswith("_corrupt")]
    assert len(reports) == found.set_aside


async def test_a_page_of_rubbish_costs_no_more_than_the_rows_on_it() -> None:
    files = await files_of(ROWS_OF_A_FILE, clean=True)
    with capture_logs() as logs:
        found = await damage_often(files, rubbish_page, tries=6, seed=1)
    assert found.set_aside == found.tries
    assert found.kept > 0.9 * found.rows
    salvaged = [log["rows"] for log in logs if log["event"] == "outbox_salvaged"]
    assert len(salvaged) == found.tries


async def test_a_log_that_is_none_is_set_aside_and_reported() -> None:
    files = await files_of(ROWS_OF_A_FILE, clean=False)
    with capture_logs() as logs:
        found = await damage_often(files, rubbish_log, tries=2, seed=1)
    assert found.wrong == []
    assert found.set_aside == found.tries
    assert {log["event"] for log in logs} == {"outbox_log_corrupt"}
