"""What a device says of itself, and what time it believes it is."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from broker.messages import Window
from bundle.trust.moment import RELEASED_S
from edge_agent.adapters.machine import Machine
from edge_agent.core.fit import put_off_until

NOON_S = datetime(2027, 3, 1, 12, 0, tzinfo=UTC).timestamp()
NOON = Window(start_minute=12 * 60, minutes=60)


def machine(
    folder: Path,
    *,
    wall_s: float = NOON_S,
    pool_s: float | None = None,
    utc_offset_min: int | None = 0,
    board: str | None = None,
) -> Machine:
    return Machine(
        folder,
        board=board,
        utc_offset_min=utc_offset_min,
        wall_s=lambda: wall_s,
        pool_s=lambda: pool_s,
    )


def test_facts_are_flat_text_that_a_fleet_can_ask_for(tmp_path: Path) -> None:
    facts = machine(tmp_path, utc_offset_min=-330, board="gateway-2").facts()
    assert facts["board"] == "gateway-2"
    assert facts["utc_offset_min"] == "-330"
    assert facts["clock"] == "ok"
    assert facts["runtime"] == "litert"
    assert facts["runtime_version"][0].isdigit()
    assert facts["os"]
    assert int(facts["memory_mb"]) > 64
    assert int(facts["free_disk_mb"]) >= 0
    assert "board" not in machine(tmp_path).facts()


def test_a_device_without_a_clock_says_so_and_takes_no_window_for_open(
    tmp_path: Path,
) -> None:
    lost = machine(tmp_path, wall_s=1000.0)
    assert lost.facts()["clock"] == "floor"
    assert lost.local_now() is None
    assert "does not know the time" in (put_off_until(NOON, lost.local_now()) or "")


@pytest.mark.parametrize("wall_s", [1000.0, RELEASED_S + 1, NOON_S + 86_400 * 400])
def test_the_pools_time_is_believed_before_a_clock_that_may_be_wrong(
    tmp_path: Path, wall_s: float
) -> None:
    told = machine(tmp_path, wall_s=wall_s, pool_s=NOON_S)
    assert put_off_until(NOON, told.local_now()) is None


def test_a_window_is_in_the_devices_own_time(tmp_path: Path) -> None:
    east = machine(tmp_path, utc_offset_min=120)
    assert "opens" in (put_off_until(NOON, east.local_now()) or "")
    evening = Window(start_minute=14 * 60, minutes=1)
    assert put_off_until(evening, east.local_now()) is None


def test_the_systems_own_offset_is_used_when_none_is_set(tmp_path: Path) -> None:
    found = machine(tmp_path, utc_offset_min=None).utc_offset_min
    assert -840 <= found <= 840


def test_a_device_counts_its_day_in_its_own_time(tmp_path: Path) -> None:
    assert machine(tmp_path, utc_offset_min=60).local_now_s() == NOON_S + 3600
    assert machine(tmp_path, wall_s=7.0).local_now_s() == 7.0
