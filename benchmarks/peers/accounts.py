"""What became of each request that was sent, counted by its number. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from benchmarks.limits import quantile


@dataclass(frozen=True, slots=True)
class Answer:
    """A peer's word on one request; `version` where it tells one."""

    number: int
    ok: bool = True
    version: str | None = None


@dataclass(slots=True)
class Sent:
    """One request: when it was meant to leave, and all that was heard of it.

    Times are seconds of one clock; `good_s` are the times of good answers.
    """

    intended_s: float
    deadline_s: float = float("inf")
    model: str = ""
    good_s: list[float] = field(default_factory=list)
    bad_s: list[float] = field(default_factory=list)
    version: str | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """Counts and latencies of one workload.

    Attributes:
        sent: requests.
        answered: with at least one good answer.
        in_time: the first good answer within the deadline, from the intended time.
        refused: told that there will be no answer, as failed or expired.
        unanswered: of which nothing was ever heard.
        duplicates: good answers beyond the first.
        goodput: in_time of sent.
        p50_ms, p99_ms, p999_ms: of the answered; None when there are none.
    """

    sent: int
    answered: int
    in_time: int
    refused: int
    unanswered: int
    duplicates: int
    goodput: float
    p50_ms: float | None
    p99_ms: float | None
    p999_ms: float | None


class Accounts:
    """The requests of one workload, by number."""

    def __init__(self) -> None:
        self.sent: dict[int, Sent] = {}
        self.answered = 0
        self.heard = 0
        self.last_s = 0.0

    def send(self, number: int, sent: Sent) -> None:
        """Expect answers to it from now on."""
        self.sent[number] = sent

    def hear(self, answer: Answer, at_s: float) -> None:
        """Note an answer; one to an earlier workload's request is passed over."""
        found = self.sent.get(answer.number)
        if found is None:
            return
        if not found.good_s and not found.bad_s:
            self.heard += 1
        if answer.ok:
            self.answered += not found.good_s
            found.good_s.append(at_s)
        else:
            found.bad_s.append(at_s)
        found.version = answer.version
        self.last_s = at_s

    def summary(self, chosen: Iterable[Sent] | None = None) -> Summary:
        """Of all requests, or of those chosen."""
        rows = list(self.sent.values() if chosen is None else chosen)
        taken = [each.good_s[0] - each.intended_s for each in rows if each.good_s]
        in_time = sum(
            each.good_s[0] - each.intended_s <= each.deadline_s
            for each in rows
            if each.good_s
        )
        refused = sum(not each.good_s and bool(each.bad_s) for each in rows)
        return Summary(
            sent=len(rows),
            answered=len(taken),
            in_time=in_time,
            refused=refused,
            unanswered=len(rows) - len(taken) - refused,
            duplicates=sum(max(0, len(each.good_s) - 1) for each in rows),
            goodput=in_time / len(rows) if rows else 0.0,
            p50_ms=_ms(taken, 0.5),
            p99_ms=_ms(taken, 0.99),
            p999_ms=_ms(taken, 0.999),
        )


def _ms(taken_s: Sequence[float], share: float) -> float | None:
    return round(quantile(taken_s, share) * 1000, 2) if taken_s else None


def spread(values: Sequence[float]) -> dict[str, float | list[float]]:
    """Median, least and greatest of a measure's repeats, and the repeats."""
    return {
        "median": round(statistics.median(values), 4),
        "least": round(min(values), 4),
        "greatest": round(max(values), 4),
        "values": [round(each, 4) for each in values],
    }
