"""What one version does on this agent, counted. Pure; memory is fixed.

Latencies go into a histogram whose buckets grow by a fixed factor, so that a median or
a percentile is known to within it, however many runs there were.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

from broker.messages import HealthReport

# 1 µs to 4 minutes, each bucket a fifth wider than the one before.
LEAST_MS: Final = 0.001
PER_DOUBLING: Final = 4
BUCKETS: Final = 112
_COUNTS: Final = (
    "requests",
    "errors",
    "spilled",
    "compared",
    "agreed",
    "chosen",
    "chosen_agreed",
    "with_active",
    "with_active_agreed",
)


class BadHealth(ValueError):
    """A stored account cannot be read."""


class Latencies:
    """A histogram of run times."""

    __slots__ = ("counts",)

    def __init__(self, counts: Sequence[int] = ()) -> None:
        self.counts = [*counts, *([0] * (BUCKETS - len(counts)))]

    def add(self, ms: float) -> None:
        """One run took so long."""
        self.counts[_bucket(ms)] += 1

    @property
    def runs(self) -> int:
        """How many were added."""
        return sum(self.counts)

    def quantile(self, share: float) -> float | None:
        """The time under which that share of the runs were, in ms; None without any."""
        counts = list(self.counts)
        wanted = share * sum(counts)
        if not sum(counts):
            return None
        below = 0
        for index, count in enumerate(counts):
            if count and below + count >= wanted:
                within = max(0.0, (wanted - below) / count)
                return _ms_at(index + within)
            below += count
        return _ms_at(BUCKETS)

    def median_between(self, z: float) -> tuple[float, float] | None:
        """Where the median lies, by the order of the runs; None with too few of them.

        Args:
            z: so many standard deviations to each side.
        """
        runs = self.runs
        half = 0.0 if not runs else z / (2.0 * math.sqrt(runs))
        if not runs or half >= 0.5:
            return None
        low, high = self.quantile(0.5 - half), self.quantile(0.5 + half)
        return (low or 0.0, high or 0.0)


def _ms_at(buckets: float) -> float:
    """Where the time lies that fills so many buckets."""
    return LEAST_MS * math.exp2(buckets / PER_DOUBLING)


def _bucket(ms: float) -> int:
    if ms <= LEAST_MS:
        return 0
    return min(BUCKETS - 1, int(PER_DOUBLING * math.log2(ms / LEAST_MS)))


@dataclass(slots=True)
class Account:
    """The books of one version since it serves, or since its shadow runs.

    Attributes:
        began_s: when, on the agent's clock.
        requests: put to it.
        errors: of them, those it failed.
        spilled: of them, those that went to the cloud.
        compared: of them, those that the cloud has answered too.
        agreed: of these, how often both said the same.
        chosen: of those compared, those drawn by chance.
        chosen_agreed: of these, how often both said the same.
        with_active: of a shadow, how many the active version has answered too.
        with_active_agreed: of these, how often both said the same.
        latencies: of its runs.
    """

    began_s: float = 0.0
    requests: int = 0
    errors: int = 0
    spilled: int = 0
    compared: int = 0
    agreed: int = 0
    chosen: int = 0
    chosen_agreed: int = 0
    with_active: int = 0
    with_active_agreed: int = 0
    latencies: Latencies = field(default_factory=Latencies)

    def ran(self, ms: float) -> None:
        """It answered one request in so many milliseconds."""
        self.latencies.add(ms)

    def heard(self, *, agrees: bool, chosen: bool) -> None:
        """The cloud has answered one of its requests too.

        Args:
            agrees: with what this version said.
            chosen: the request was drawn by chance, to be audited.
        """
        self.compared += 1
        self.agreed += agrees
        if chosen:
            self.chosen += 1
            self.chosen_agreed += agrees

    def beside(self, *, agrees: bool) -> None:
        """The active version has answered one of a shadow's requests too."""
        self.with_active += 1
        self.with_active_agreed += agrees

    def report(self, now_s: float) -> HealthReport:
        """What the fleet hears of it."""
        return HealthReport(
            for_s=max(0.0, now_s - self.began_s),
            p50_ms=self.latencies.quantile(0.5),
            p99_ms=self.latencies.quantile(0.99),
            **{name: getattr(self, name) for name in _COUNTS},
        )

    def to_state(self, now_s: float) -> dict[str, Any]:
        """As JSON can hold it."""
        counts = list(self.latencies.counts)
        while counts and not counts[-1]:
            counts.pop()
        return {
            "for_s": max(0.0, now_s - self.began_s),
            "latencies": counts,
            **{name: getattr(self, name) for name in _COUNTS},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], now_s: float) -> Self:
        """Go on where `to_state` was.

        Raises:
            BadHealth: it is no account.
        """
        counts, for_s = state.get("latencies"), state.get("for_s")
        numbers = [state.get(name, 0) for name in _COUNTS]
        if not isinstance(counts, list) or len(counts) > BUCKETS:
            raise BadHealth("latencies are missing")
        if not isinstance(for_s, int | float) or not math.isfinite(for_s):
            raise BadHealth("for_s is missing")
        for each in (*counts, *numbers):
            if not isinstance(each, int) or isinstance(each, bool) or each < 0:
                raise BadHealth(f"{each!r:.40} is no count")
        account = cls(now_s - for_s, latencies=Latencies(counts))
        for name, number in zip(_COUNTS, numbers, strict=True):
            setattr(account, name, number)
        return account
