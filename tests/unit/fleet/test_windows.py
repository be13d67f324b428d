"""When agents may be told, in their own time."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from broker.messages import UpdatePolicy, Window
from fleet.core.rollouts import RolloutState
from fleet.core.windows import is_open, work_ends_ms
from tests.rollouts import Small

NIGHT = Window(start_minute=22 * 60, minutes=5 * 60)
SATURDAY_NIGHT = Window(days=[5], start_minute=22 * 60, minutes=5 * 60)


def at(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


@pytest.mark.parametrize(
    ("window", "offset", "when", "opened"),
    [
        (None, "0", "2026-11-23T12:00", True),
        (NIGHT, "0", "2026-11-23T12:00", False),
        (NIGHT, "0", "2026-11-23T22:00", True),
        (NIGHT, "0", "2026-11-24T02:59", True),
        (NIGHT, "0", "2026-11-24T03:00", False),
        # In the device's own time.
        (NIGHT, "540", "2026-11-23T13:00", True),
        (NIGHT, "-300", "2026-11-23T22:00", False),
        # Saturday the 28th, and the hours after midnight are its own.
        (SATURDAY_NIGHT, "0", "2026-11-28T23:00", True),
        (SATURDAY_NIGHT, "0", "2026-11-29T01:00", True),
        (SATURDAY_NIGHT, "0", "2026-11-29T23:00", False),
        (SATURDAY_NIGHT, "0", "2026-11-28T01:00", False),
        # Who does not say where it is decides by itself.
        (NIGHT, "", "2026-11-23T12:00", True),
        (NIGHT, "soon", "2026-11-23T12:00", True),
        (NIGHT, "9999999", "2026-11-23T12:00", True),
        (Window(), "0", "2026-11-23T12:00", True),
    ],
)
def test_a_window_opens_in_the_agents_own_time(
    window: Window | None, offset: str, when: str, *, opened: bool
) -> None:
    assert is_open(window, {"utc_offset_min": offset}, at(when)) is opened


@pytest.mark.parametrize(
    ("window", "offset", "begins", "work_min", "ends"),
    [
        (None, 0, "2026-11-23T12:00", 30, "2026-11-23T12:30"),
        (NIGHT, None, "2026-11-23T12:00", 30, "2026-11-23T12:30"),
        (NIGHT, 0, "2026-11-23T12:00", 30, "2026-11-23T22:30"),
        (NIGHT, 540, "2026-11-23T12:00", 30, "2026-11-23T13:30"),
        # Half an hour is left of this night, the rest is done in the next.
        (NIGHT, 0, "2026-11-23T02:30", 45, "2026-11-23T22:15"),
        (NIGHT, 0, "2026-11-23T22:00", 11 * 60, "2026-11-25T23:00"),
        (SATURDAY_NIGHT, 0, "2026-11-23T12:00", 30, "2026-11-28T22:30"),
        (SATURDAY_NIGHT, 0, "2026-11-29T02:30", 45, "2026-12-05T22:15"),
        (Window(), 0, "2026-11-23T12:00", 3000, "2026-11-25T14:00"),
        # Nothing to do, but not before it opens.
        (NIGHT, 0, "2026-11-23T12:00", 0, "2026-11-23T22:00"),
    ],
)
def test_work_goes_on_only_while_the_window_is_open(
    window: Window | None, offset: int | None, begins: str, work_min: int, ends: str
) -> None:
    done_ms = work_ends_ms(window, offset, at(begins), work_min * 60_000)
    assert done_ms == at(ends)


def test_agents_are_told_when_their_window_opens_and_the_rollout_waits_for_them() -> (
    None
):
    fleet = Small(["here", "there"], now_ms=at("2026-11-23T12:00"))
    fleet.knows("here", utc_offset_min="0")
    fleet.knows("there", utc_offset_min="600")
    one = fleet.start(policy=UpdatePolicy(window=NIGHT))
    fleet.look()
    fleet.obey()
    fleet.look()
    assert fleet.told(one) == {"there"}
    assert fleet.course(one).state is RolloutState.RUNNING
    fleet.passes(11 * 3600)
    fleet.look()
    fleet.obey()
    fleet.look()
    assert fleet.told(one) == {"here", "there"}
    assert fleet.course(one).state is RolloutState.DONE
