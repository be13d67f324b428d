"""What may be spent: a token bucket, as a value. Knows no clock; the caller counts.

The count is of seconds for a budget of bytes a day, and of requests for a share that may
be spilled.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Final

_BYTES: Final = {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12} | {
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_SHARE: Final = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*%\s*")
_SECONDS: Final = {
    "s": 1,
    "second": 1,
    "min": 60,
    "minute": 60,
    "h": 3_600,
    "hour": 3_600,
    "day": 86_400,
    "week": 604_800,
    "month": 2_592_000,
}
_BUDGET: Final = re.compile(
    r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?i?b)\s*/\s*([a-z]+)\s*", re.IGNORECASE
)
# Of a budget, what may be spent at once. The rest comes in over the period, so that
# no period as long, wherever it begins, spends more than the budget.
_AT_ONCE: Final = 0.25


@dataclass(frozen=True, slots=True)
class Allowance:
    """A token bucket.

    Attributes:
        capacity: the most there can be, above 0.
        rate: what comes in for each count of one.
        level: what there is at `at`; under 0 where more was spent than there was.
        at: the count.
    """

    capacity: float
    rate: float
    level: float
    at: float = 0.0

    def __post_init__(self) -> None:
        if not self.capacity > 0 or not self.rate >= 0 or not math.isfinite(self.rate):
            raise ValueError(
                f"an allowance has a capacity above 0 and a rate, got {self.capacity} "
                f"and {self.rate}"
            )

    def refilled(self, at: float) -> Allowance:
        """The same, later. A count that goes back brings nothing and takes nothing."""
        if at <= self.at:
            return self
        level = min(self.capacity, self.level + (at - self.at) * self.rate)
        return replace(self, level=level, at=at)

    def spent(self, amount: float, at: float) -> Allowance:
        """The same after `amount` is spent; never deeper in debt than its capacity."""
        now = self.refilled(at)
        return replace(now, level=max(-now.capacity, now.level - amount))

    def left(self, at: float) -> float:
        """How full it is, 0..1."""
        return max(0.0, self.refilled(at).level) / self.capacity


def bytes_allowance(text: str, at_s: float = 0.0) -> Allowance:
    """An allowance of bytes by time, full, such as `50MB/day` or `1.5 GiB / week`.

    Args:
        text: decimal or binary units; a second, minute, hour, day, week or month
            (30 days).
        at_s: now, on the clock that it will be counted by.

    Raises:
        ValueError: not such a text, or nothing in it.
    """
    found = _BUDGET.fullmatch(text)
    period_s = _SECONDS.get(found[3].lower()) if found else None
    if found is None or period_s is None:
        raise ValueError(f"a budget reads like 50MB/day, got {text!r}")
    amount = float(found[1]) * _BYTES[found[2].upper()]
    if amount <= 0:
        raise ValueError(f"a budget of nothing spills nothing, got {text!r}")
    capacity = amount * _AT_ONCE
    return Allowance(capacity, (amount - capacity) / period_s, capacity, at_s)


def parse_share(text: str) -> float:
    """A share of requests, such as `15%`, as a number above 0 and at most 1.

    Raises:
        ValueError: not such a text, or out of range.
    """
    found = _SHARE.fullmatch(text)
    share = float(found[1]) / 100 if found else 0.0
    if not 0 < share <= 1:
        raise ValueError(f"a quota reads like 15%, above 0 and up to 100, got {text!r}")
    return share


def spill_allowance(share: float, burst: int = 1_000, at: float = 0.0) -> Allowance:
    """An allowance of spills by requests, full.

    Of any n requests, at most share · (n + burst) are spilled.

    Args:
        share: above 0, at most 1.
        burst: requests whose share may be spilled at once.
        at: how many requests there were.

    Raises:
        ValueError: a share or burst out of range.
    """
    if not 0 < share <= 1 or burst < 1:
        raise ValueError(f"a quota is a share in 0..1 with a burst, got {share}")
    return Allowance(share * burst, share, share * burst, at)
