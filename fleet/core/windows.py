"""When an agent may change a model, in its own time, as far as the fleet knows.

The agent decides that by itself. The fleet asks first, so that agents whose window opens
together are told in turns, and not all of them long before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from broker.messages import Window

DAY_MIN: Final = 24 * 60
WEEK_DAYS: Final = 7
# The first of January 1970 was a Thursday; 0 is Monday.
FIRST_DAY: Final = 3
MOST_OFFSET_MIN: Final = 26 * 60
MIN_MS: Final = 60_000
# No plan is for longer than this.
MOST_DAYS: Final = 1000


def is_open(window: Window | None, facts: Mapping[str, str], now_ms: int) -> bool:
    """Whether the window is open for an agent.

    Args:
        window: None is always open.
        facts: what the agent reports; without `utc_offset_min` it is left to decide.
        now_ms: Unix time.
    """
    offset_min = utc_offset_min(facts)
    if window is None or offset_min is None:
        return True
    day, minute = divmod(now_ms // 60_000 + offset_min, DAY_MIN)
    since_min = (minute - window.start_minute) % DAY_MIN
    if since_min >= window.minutes:
        return False
    # What began yesterday and goes on over midnight is of yesterday.
    began = day - (minute < window.start_minute)
    return not window.days or (began + FIRST_DAY) % WEEK_DAYS in window.days


def work_ends_ms(
    window: Window | None, offset_min: int | None, from_ms: int, work_ms: int
) -> int:
    """When work is done that goes on only while the window is open.

    Args:
        window: None is always open.
        offset_min: from UTC to the agent's own time; None: it decides by itself, and
            the window counts as open.
        from_ms: Unix time at which it could begin.
        work_ms: how long it lasts without breaks.
    """
    if window is None or offset_min is None:
        return from_ms + work_ms
    at_ms, left_ms = from_ms + offset_min * MIN_MS, work_ms
    today = at_ms // (DAY_MIN * MIN_MS)
    # What began yesterday may still be open.
    for day in range(today - 1, today + MOST_DAYS):
        if window.days and (day + FIRST_DAY) % WEEK_DAYS not in window.days:
            continue
        opens_ms = (day * DAY_MIN + window.start_minute) * MIN_MS
        closes_ms = opens_ms + window.minutes * MIN_MS
        if closes_ms <= at_ms:
            continue
        at_ms = max(at_ms, opens_ms)
        done_ms = min(left_ms, closes_ms - at_ms)
        at_ms, left_ms = at_ms + done_ms, left_ms - done_ms
        if not left_ms:
            break
    return at_ms - offset_min * MIN_MS


def utc_offset_min(facts: Mapping[str, str]) -> int | None:
    """How far an agent's own time is from UTC; None when it does not say."""
    try:
        offset = int(facts.get("utc_offset_min") or "")
    except ValueError:
        return None
    return offset if abs(offset) <= MOST_OFFSET_MIN else None
