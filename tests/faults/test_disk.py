"""The outbox on a disk that is full or broken, and on files that are damaged."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import sqlite3
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import pytest
from structlog.testing import capture_logs

from broker.backoff import Backoff
from edge_agent.adapters.outbox import (
    Committed,
    Outbox,
    OutboxFailed,
    OutboxFull,
)
from edge_agent.adapters.spill_log import CHECKPOINT_CHANGES, LONG_LOG_BYTES
from edge_agent.core.delivery import Outcome, Spill
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
from tests.faults.rows.power_cut import (
    DEVICE,
    FILE,
    NOW_MS,
    content_of,
    spill_of,
)
from tests.faults.unsynced import Disk
from tests.faults.watched_disk import (
    CANTOPEN,
    IOERR_FSYNC,
    IOERR_READ,
    OK,
    Op,
    WatchedDisk,
    watched,
)


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


async def lost_behind_a_checkpoint(work: Work) -> list[int]:
    """What was accepted after a checkpoint could not sync the log, by power cut.

    Args:
        work: leaves in the log what is not synced, and arms the fault before the
            checkpoint.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        watched(Path(folder)) as disk,
        capture_logs(),
    ):
        path = Path(folder) / FILE
        async with Outbox(path, group_commit_ms=1.0) as outbox:
            failed = await work(outbox, disk)
            assert await outbox.accept(spill_of("late")) == Committed()
            assert failed, "no checkpoint has met the fault"
            steps = list(disk.trace)
    cut = Disk()
    cut.follow(steps)
    return [seed for seed in range(8) if not await is_there(cut, seed)]


async def is_there(disk: Disk, seed: int) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        disk.cut(random.Random(seed)).write_to(Path(folder))
        async with Outbox(Path(folder) / FILE) as outbox:
            return await outbox.find((DEVICE, "late")) is not None


Work: TypeAlias = Callable[[Outbox, WatchedDisk], Awaitable[list[str]]]


def fail_next_sync_of_log(disk: WatchedDisk) -> list[str]:
    """Gives what has failed, as it comes."""
    failed: list[str] = []

    def fault(op: Op, file: str, size: int) -> int:
        if failed or op is not Op.SYNC or not file.endswith("-wal"):
            return OK
        failed.append(file)
        return IOERR_FSYNC

    disk.fault = fault
    return failed


async def a_long_log(outbox: Outbox, disk: WatchedDisk) -> list[str]:
    """The commit that makes the log too long is one that needs no sync."""
    large = LONG_LOG_BYTES // 4 - 100_000
    for id_ in "abcd":
        await outbox.accept(replace(spill_of(id_), request=bytes(large)))
    failed = fail_next_sync_of_log(disk)
    await outbox.settle((DEVICE, "a"), Outcome.ANSWERED, bytes(800_000), ended_ms=1.0)
    return failed


async def an_idle_moment(outbox: Outbox, disk: WatchedDisk) -> list[str]:
    """Answered before they were accepted, rows need no sync; then there is time."""
    failed = fail_next_sync_of_log(disk)
    for number in range(CHECKPOINT_CHANGES):
        each = spill_of(f"r{number}")
        _ = outbox.accept(each)
        _ = outbox.settle(each.key, Outcome.ANSWERED, b"early", ended_ms=1.0)
    async with asyncio.timeout(10):
        while not failed:
            await outbox.counts()
    return failed


@pytest.mark.parametrize("work", [a_long_log, an_idle_moment])
async def test_a_row_accepted_after_a_checkpoint_that_could_not_sync_is_not_lost(
    work: Work,
) -> None:
    assert await lost_behind_a_checkpoint(work) == []


@pytest.mark.parametrize(
    ("op", "code", "after"),
    [
        (Op.OPEN, CANTOPEN, 0),
        (Op.READ, IOERR_READ, 0),
        # While the pages are looked at: what cannot be read is not damaged.
        (Op.READ, IOERR_READ, 6),
        (Op.READ, IOERR_READ, 12),
    ],
)
async def test_a_disk_that_fails_at_the_start_costs_spills_until_it_works_again(
    tmp_path: Path, op: Op, code: int, after: int
) -> None:
    asked = itertools.count()

    def fault(its: Op, file: str, size: int) -> int:
        return code if its is op and next(asked) >= after else OK

    with watched(tmp_path) as disk, capture_logs() as logs:
        async with Outbox(tmp_path / FILE, group_commit_ms=1.0) as outbox:
            ids = [f"r{n}" for n in range(ROWS_OF_A_FILE)]
            await asyncio.gather(*(outbox.accept(spill_of(id_)) for id_ in ids))
        disk.fault = fault
        async with (
            Outbox(tmp_path / FILE, group_commit_ms=1.0) as outbox,
            asyncio.TaskGroup() as tasks,
        ):
            opening = tasks.create_task(outbox.keep_open(Backoff(0.01, 0.05)))
            assert "cannot open the outbox" in str(outbox.error)
            with pytest.raises(OutboxFull, match="cannot open the outbox") as refused:
                _ = outbox.accept(spill_of("meanwhile"))
            assert refused.value.retry_after_s > 0
            with pytest.raises(OutboxFailed):
                await outbox.find((DEVICE, "r0"))
            disk.heal()
            async with asyncio.timeout(10):
                while outbox.error is not None:  # noqa: ASYNC110 - a file
                    await asyncio.sleep(0.01)
            assert await outbox.accept(spill_of("meanwhile")) == Committed()
            counts = await outbox.counts()
            assert (counts.open, counts.ledger.balanced) == (ROWS_OF_A_FILE + 1, True)
            assert await outbox.get((DEVICE, "r0")) == spill_of("r0")
            opening.cancel()
    assert [log["event"] for log in logs if "corrupt" in log["event"]] == []
    assert [log["open"] for log in logs if log["event"] == "outbox_opened"] == [
        ROWS_OF_A_FILE
    ]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
async def test_an_outbox_opens_and_accepts_however_its_file_was_damaged(
    damage: Damage,
) -> None:
    files = await files_of(ROWS_OF_A_FILE, clean=True)
    with capture_logs() as logs:
        found = await damage_often(files, damage, tries=6, seed=1)
    assert found.wrong == []
    assert found.altered == 0
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


async def test_a_file_damaged_while_it_is_open_is_replaced_without_a_restart(
    tmp_path: Path,
) -> None:
    path = tmp_path / "outbox.db"
    ids = [f"r{n}" for n in range(200)]
    async with Outbox(path, group_commit_ms=1.0) as outbox:
        await asyncio.gather(*(outbox.accept(spill_of(id_)) for id_ in ids))
        await asyncio.to_thread(overwrite_index, path)
        with capture_logs() as logs:
            failures, claimed = 0, list[Spill]()
            async with asyncio.timeout(10):
                while True:
                    try:
                        claimed = await outbox.claim_due(
                            NOW_MS,
                            limit=500,
                            max_bytes=1 << 30,
                            next_due_ms=lambda _: NOW_MS + 60_000,
                        )
                        break
                    except OutboxFailed:
                        failures += 1
        assert failures == 1
        assert {each.id for each in claimed} == set(ids)
        assert all(each.request == content_of(each.id) for each in claimed)
        assert await outbox.accept(spill_of("new")) == Committed()
        assert (await outbox.counts()).open == 201
        assert (await outbox.counts()).ledger.balanced
    assert [log["rows"] for log in logs if log["event"] == "outbox_salvaged"] == [200]
    assert [log["event"] for log in logs].count("outbox_corrupt") == 1


def overwrite_index(path: Path) -> None:
    """Rubbish where the order of sending is kept, and nothing of it in any cache."""
    with contextlib.closing(sqlite3.connect(path, timeout=10)) as db:
        db.execute("PRAGMA application_id = 7").fetchone()
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        (page,) = db.execute(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'ready_by_deadline'"
        ).fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xa5" * 4096)
