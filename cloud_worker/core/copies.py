"""Where each version stands that was ever tried, and who uses it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from cloud_worker.core.shelf import Key


class Standing(Enum):
    """Where a version stands; one that nobody has tried has no standing."""

    LOADING = auto()
    LOADED = auto()
    UNLOADED = auto()  # known and warm once, and not in memory
    FAILED = auto()


@dataclass(frozen=True, slots=True)
class Copy:
    """What is known of a version that was tried."""

    standing: Standing
    files: str
    memory_bytes: int = 0
    since_s: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Use:
    """Who uses what: the keys that requests wait for, and when each was last asked.

    All times are in the monotonic clock of `now_s`.
    """

    waiting: Collection[Key] = ()
    last_s: Mapping[Key, float] = field(default_factory=dict)
    now_s: float = 0.0
