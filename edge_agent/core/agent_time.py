"""Decide what time it is for the agent when it starts. Deadlines are kept in this time.

The wall clock may jump by years while the agent is down, so it is only asked about the
time between two boots, and never believed when it has gone back.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Final, Self

_NUMBERS: Final = ("agent_ms", "boottime_ms", "wall_ms", "pool_offset_ms")


class DamagedStamp(ValueError):
    """What is stored is no stamp; start from the wall clock."""


@dataclass(frozen=True, slots=True)
class Moment:
    """What the machine's clocks say; `boot_id` is None where the system has none."""

    boot_id: str | None
    boottime_ms: float
    wall_ms: float


@dataclass(frozen=True, slots=True)
class TimeStamp:
    """The agent's time at one moment of the machine's clocks.

    Attributes:
        agent_ms: the agent's own time.
        pool_offset_ms: added to it gives the pool's, as far as was learned; else None.
    """

    agent_ms: float
    boot_id: str | None
    boottime_ms: float
    wall_ms: float
    pool_offset_ms: float | None = None

    @classmethod
    def at(cls, agent_ms: float, moment: Moment, pool_offset_ms: float | None) -> Self:
        """A stamp of this moment."""
        return cls(
            agent_ms,
            moment.boot_id,
            moment.boottime_ms,
            moment.wall_ms,
            pool_offset_ms,
        )


def resume_ms(stamp: TimeStamp | None, now: Moment) -> float:
    """The agent's time now, which is never before that of the stamp.

    Within one boot it goes on by the time since the machine started. After another
    boot nothing but the wall clock knows how long the machine was off: the agent's
    time goes on by the difference, unless the wall clock has gone back.
    """
    if stamp is None:
        return now.wall_ms
    since_boot_ms = now.boottime_ms - stamp.boottime_ms
    same_boot = now.boot_id is not None and now.boot_id == stamp.boot_id
    # A container may be moved to a machine with other clocks.
    if same_boot and since_boot_ms >= 0:
        return stamp.agent_ms + since_boot_ms
    return stamp.agent_ms + max(0.0, now.wall_ms - stamp.wall_ms)


def write_stamp(stamp: TimeStamp) -> bytes:
    """A stamp as it is stored."""
    return json.dumps(asdict(stamp), allow_nan=False).encode()


def read_stamp(data: bytes) -> TimeStamp:
    """The stamp that `write_stamp` was given.

    Raises:
        DamagedStamp: it is not one.
    """
    try:
        stored = json.loads(data)
    except ValueError as error:
        raise DamagedStamp(f"no JSON: {error}") from error
    names = set(TimeStamp.__dataclass_fields__)
    if not isinstance(stored, dict) or not names <= stored.keys():
        raise DamagedStamp(f"it lacks some of {', '.join(sorted(names))}")
    for name in _NUMBERS:
        value = stored[name]
        if name == "pool_offset_ms" and value is None:
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not isfinite(value):
            raise DamagedStamp(f"{name} is {value!r:.40}, which is no time")
    if not isinstance(stored["boot_id"], str | None):
        raise DamagedStamp("boot_id is no text")
    return TimeStamp(**{name: stored[name] for name in names})
