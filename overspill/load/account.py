"""What became of each request. Knows no clock: every time is given, from the start.

offered = answered + failed + expired + refused + lost + unsent + open, always. Latency
runs from the *intended* time, so a generator or a link that falls behind shows in it.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from overspill.load.histogram import Histogram
from overspill.load.mix import Planned

REASONS_KEPT: Final = 20
# A trace may give each request a deadline of its own.
GROUPS_KEPT: Final = 50
OTHER_GROUPS: Final = "others"
REASON_LENGTH: Final = 160
OTHER: Final = "other reasons"
_NUMBERS: Final = re.compile(r"\d+(?:\.\d+)?")
# How the pool begins the reason of what it sheds.
OVERLOADED: Final = "overloaded"
_HEARD: Final = 1
_LOST: Final = 2


class End(StrEnum):
    """How a request ended."""

    ANSWERED = "answered"
    FAILED = "failed"
    EXPIRED = "expired"
    REFUSED = "refused"
    LOST = "lost"
    """Nothing was heard of it within the bound."""
    UNSENT = "unsent"
    """The generator had too many publishes under way to begin another."""


class Reasons:
    """Counts of reasons; those that differ only in figures are one."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, reason: str) -> None:
        """Count one, in the words of the first of its kind."""
        shape = _NUMBERS.sub("#", reason)[:REASON_LENGTH]
        if shape not in self._first and len(self._first) < REASONS_KEPT:
            self._first[shape] = reason[:REASON_LENGTH]
        self.counts[self._first.get(shape, OTHER)] += 1


@dataclass(frozen=True, slots=True)
class Ending:
    """One final word on a request, as it was heard.

    Attributes:
        source: whose answer, as a device hears it; None from the pool.
        batch_size: of the batch it ran in; 0 if unknown.
    """

    number: int
    end: End
    reason: str | None = None
    source: str | None = None
    batch_size: int = 0


@dataclass(slots=True)
class Tally:
    """Counts and latencies of one group of requests."""

    offered: int = 0
    in_time: int = 0
    overloaded: int = 0
    ends: Counter[End] = field(default_factory=Counter)
    latency: Histogram = field(default_factory=Histogram)

    @property
    def open(self) -> int:
        """Those without an end."""
        return self.offered - self.ends.total()

    @property
    def goodput(self) -> float | None:
        """Share of those offered that were answered in time; None of none."""
        return self.in_time / self.offered if self.offered else None

    def document(self, *, buckets: bool = False) -> dict[str, Any]:
        """Its figures; latencies are those of what was answered, in milliseconds."""
        goodput = self.goodput
        return {
            "offered": self.offered,
            **{end.value: self.ends[end] for end in End},
            "open": self.open,
            "in_time": self.in_time,
            "overloaded": self.overloaded,
            "goodput": None if goodput is None else round(goodput, 6),
            "latency_ms": self.latency.document(buckets=buckets),
        }


@dataclass(frozen=True, slots=True)
class _Open:
    offset_s: float
    deadline_s: float
    tallies: tuple[Tally, ...]


class Account:
    """Counts requests and what was heard of them.

    Args:
        lost_after_s: beyond a request's deadline, until it counts as lost.
    """

    def __init__(self, *, lost_after_s: float) -> None:
        self._lost_after_s = lost_after_s
        self._open: dict[int, _Open] = {}
        self._give_up: list[tuple[float, int]] = []
        self._groups: dict[tuple[str, str], Tally] = {}
        self.total = Tally()
        self.warmup = Tally()
        self.lateness = Histogram()
        self.reasons: dict[End, Reasons] = {}
        self.sources: Counter[str] = Counter()
        self.batches: Counter[int] = Counter()
        self.publish_failures = Reasons()
        self.link_losses = 0
        self.duplicates = 0
        self.after_lost = 0
        self.last_answer_s = 0.0
        self.last_offer_s = 0.0
        self._ended = bytearray()

    @property
    def open(self) -> int:
        """Requests, warm-up included, without an end."""
        return len(self._open)

    @property
    def next_give_up_s(self) -> float | None:
        """When the next request may count as lost; None when none is open."""
        return self._give_up[0][0] if self._open and self._give_up else None

    def offer(self, planned: Planned) -> None:
        """Its time has come. Numbers come in order, from 0."""
        tallies = self._tallies(planned)
        for tally in tallies:
            tally.offered += 1
        self.last_offer_s = planned.offset_s
        number = planned.number
        self._open[number] = _Open(planned.offset_s, planned.deadline_s, tallies)
        self._ended.append(0)
        until_s = planned.offset_s + planned.deadline_s + self._lost_after_s
        heapq.heappush(self._give_up, (until_s, number))

    def began(self, planned: Planned, at_s: float) -> None:
        """It was handed to the link."""
        if planned.measured:
            self.lateness.record(at_s - planned.offset_s)

    def not_sent(self, planned: Planned) -> None:
        """It will never be handed to the link."""
        self._end(planned.number, End.UNSENT)

    def publish_failed(self, reason: str) -> None:
        """A publish was not confirmed; what it carried may arrive all the same."""
        self.publish_failures.add(reason)

    def hear(self, ending: Ending, at_s: float) -> None:
        """A final word came; a number that was never offered is somebody else's."""
        number = ending.number
        if not 0 <= number < len(self._ended):
            return
        if self._ended[number]:
            if self._ended[number] == _LOST:
                self.after_lost += 1
                self._ended[number] = _HEARD
            else:
                self.duplicates += 1
            return
        request = self._open[number]
        latency_s = at_s - request.offset_s
        overloaded = _is_overload(ending)
        for tally in request.tallies:
            tally.overloaded += overloaded
            if ending.end is End.ANSWERED:
                tally.latency.record(latency_s)
                tally.in_time += latency_s <= request.deadline_s
        if request.tallies[0] is self.total:
            self._describe(ending, at_s)
        self._end(number, ending.end)

    def give_up(self, at_s: float) -> int:
        """Count as lost what has waited for too long; how many that were."""
        lost = 0
        while self._give_up and self._give_up[0][0] <= at_s:
            _, number = heapq.heappop(self._give_up)
            if number in self._open:
                self._end(number, End.LOST)
                lost += 1
        return lost

    def groups(self, by: str) -> dict[str, Tally]:
        """The tallies by `model`, `class` or `deadline`."""
        return {key: tally for (kind, key), tally in self._groups.items() if kind == by}

    def _tallies(self, planned: Planned) -> tuple[Tally, ...]:
        if not planned.measured:
            return (self.warmup,)
        keys = (
            ("model", planned.model),
            ("class", planned.priority.value),
            ("deadline", f"{planned.deadline_s * 1000.0:g}ms"),
        )
        return (self.total, *(self._group(*key) for key in keys))

    def _group(self, by: str, name: str) -> Tally:
        if (by, name) not in self._groups and len(self.groups(by)) >= GROUPS_KEPT:
            name = OTHER_GROUPS
        return self._groups.setdefault((by, name), Tally())

    def _describe(self, ending: Ending, at_s: float) -> None:
        if ending.end is End.ANSWERED:
            self.last_answer_s = max(self.last_answer_s, at_s)
            if ending.source:
                self.sources[ending.source] += 1
            if ending.batch_size:
                self.batches[ending.batch_size] += 1
        else:
            of_end = self.reasons.setdefault(ending.end, Reasons())
            of_end.add(ending.reason or "no reason was given")

    def _end(self, number: int, end: End) -> None:
        for tally in self._open.pop(number).tallies:
            tally.ends[end] += 1
        self._ended[number] = _LOST if end is End.LOST else _HEARD


def _is_overload(ending: Ending) -> bool:
    told = ending.end in {End.FAILED, End.REFUSED}
    return told and (ending.reason or "").lower().startswith(OVERLOADED)
