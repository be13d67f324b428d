"""The outbox on a disk that forgets what was not synced."""

from __future__ import annotations

import random

import pytest

from tests.faults.rows.power_cut import cut_often, recorded, recorded_alone
from tests.faults.unsynced import Disk
from tests.faults.watched_disk import (
    Made,
    Mark,
    Step,
    Synced,
    SyncFailed,
    Truncated,
    Wrote,
)


@pytest.mark.parametrize("seed", range(3))
async def test_what_was_accepted_is_there_after_a_power_cut(seed: int) -> None:
    steps = await recorded(300, seed)
    found = await cut_often(steps, 60, seed)
    assert found.checked > 1000
    assert found.open
    assert found.ended
    assert found.lost == []
    assert found.wrong == []


async def test_rows_committed_without_fsync_are_found_lost() -> None:
    safe = await cut_often(recorded_alone(60, "FULL"), 30, 1)
    assert (safe.lost, safe.wrong) == ([], [])
    careless = await cut_often(recorded_alone(60, "NORMAL"), 30, 1)
    assert careless.lost
    assert careless.wrong == []


async def test_a_disk_that_lies_about_fsync_is_found_out() -> None:
    steps = await recorded(100, 1)
    lies = [step for step in steps if not isinstance(step, Synced)]
    found = await cut_often(lies, 20, 1)
    assert found.lost


# --- the replay itself ------------------------------------------------------------------

BEGUN: list[Step] = [
    Made("a-wal"),
    Wrote("a-wal", 0, b"1" * 1024),
    Synced("a-wal", 2),
]


def remains(steps: list[Step], times: int = 300) -> set[bytes | None]:
    """Every content that `a-wal` was found with, over many cuts."""
    disk = Disk()
    disk.follow(steps)
    rng = random.Random(7)
    return {disk.cut(rng).files.get("a-wal") for _ in range(times)}


def test_what_was_synced_is_always_there() -> None:
    assert remains(BEGUN) == {b"1" * 1024}
    assert remains([*BEGUN, Mark("accepted", "x")]) == {b"1" * 1024}


def test_a_new_file_may_vanish_until_its_folder_is_synced() -> None:
    assert None in remains(BEGUN[:2])


def test_unsynced_sectors_survive_each_for_itself() -> None:
    found = remains([*BEGUN, Wrote("a-wal", 0, b"2" * 1024)])
    one, two = b"1" * 512, b"2" * 512
    assert found == {one + one, one + two, two + one, two + two}


def test_a_write_that_began_after_the_sync_is_not_covered_by_it() -> None:
    late: list[Step] = [*BEGUN, Wrote("a-wal", 0, b"2" * 512), Synced("a-wal", 3)]
    assert b"1" * 1024 in remains(late)


def test_a_hole_before_a_surviving_sector_holds_no_promise() -> None:
    found = remains([*BEGUN, Wrote("a-wal", 1024, b"2" * 1024)])
    sizes = {len(each) for each in found if each is not None}
    assert sizes == {1024, 1536, 2048}
    assert any(each and each[1024:1536] == b"\0" * 512 for each in found)


def test_a_truncation_may_be_forgotten() -> None:
    assert remains([*BEGUN, Truncated("a-wal", 0)]) == {b"1" * 1024, b""}


def test_what_a_failed_sync_covered_stays_in_doubt_after_a_good_one() -> None:
    doubtful: list[Step] = [
        *BEGUN,
        Wrote("a-wal", 0, b"2" * 512),
        SyncFailed("a-wal", 4),
        Wrote("a-wal", 512, b"3" * 512),
        Synced("a-wal", 6),
    ]
    ends = b"3" * 512
    assert remains(doubtful) == {b"1" * 512 + ends, b"2" * 512 + ends}
