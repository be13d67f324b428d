"""Whether an agent may change a model now, in its own time, as far as the fleet knows.

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


def is_open(window: Window | None, facts: Mapping[str, str], now_ms: int) -> bool:
    """Whether the window is open for an agent.

    Args:
        window: None is always open.
        facts: what the agent reports; without `utc_offset_min` it is left to decide.
        now_ms: Unix time.
    """
    offset_min = _offset_min(facts.get("utc_offset_min"))
    if window is None or offset_min is None:
        return True
    day, minute = divmod(now_ms // 60_000 + offset_min, DAY_MIN)
    since_min = (minute - window.start_minute) % DAY_MIN
    if since_min >= window.minutes:
        return False
    # What began yesterday and goes on over midnight is of yesterday.
    began = day - (minute < window.start_minute)
    return not window.days or (began + FIRST_DAY) % WEEK_DAYS in window.days


def _offset_min(text: str | None) -> int | None:
    try:
        offset = int(text or "")
    except ValueError:
        return None
    return offset if abs(offset) <= MOST_OFFSET_MIN else None
