"""What came of the devices while a crowd asked more of the pool than it can do. Pure.

The promise of an overload: answers stay as quick as their deadline, none is lost, and
what it costs is accuracy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from overspill.demo.history import Asked
from overspill.demo.measures import (
    LOST,
    Flags,
    duplicated,
    fate,
    held_back,
    is_right,
    share,
    spilled,
)
from overspill.demo.promises import ByAgent, Change

PROBE: Final = "probe"
OVERLOAD: Final = "overload"
UNANSWERED: Final = ("failed", "expired", "refused")


@dataclass(frozen=True, slots=True)
class Crowd:
    """What others asked of the same pool.

    Attributes:
        capacity_per_s: what the pool did of a burst, beside the devices' requests.
        rate_per_s: what was then asked of it.
        requests: how many were sent so.
        answered: and how many of them were answered.
        expired: whose deadline came first.
        shed: which the pool turned away, as it could not answer them in time.
    """

    capacity_per_s: float
    rate_per_s: float
    requests: int
    answered: int
    expired: int
    shed: int


@dataclass(frozen=True, slots=True)
class Moment:
    """The devices' requests of one stage; milliseconds are of all that were answered.

    Attributes:
        spill_rate: of how many the cloud was asked.
        answered_edge: as ever.
        answered_cloud: as ever.
        held_back: hard ones that the edge answered at once, to spare the pool.
        too_late: hard ones that the edge answered as the cloud did not in time.
        unanswered: failed, expired or refused.
        lost: without any end.
        duplicated: with more than one.
        accuracy: of what devices heard.
        edge_only_accuracy: of the edge model on the same images.
    """

    requests: int
    p50_ms: float | None
    p99_ms: float | None
    spill_rate: float
    answered_edge: int
    answered_cloud: int
    held_back: int
    too_late: int
    unanswered: int
    lost: int
    duplicated: int
    accuracy: float
    edge_only_accuracy: float

    @property
    def gain(self) -> float:
        """What the cloud was worth: accuracy over the edge alone, 0..1."""
        return self.accuracy - self.edge_only_accuracy


@dataclass(frozen=True, slots=True)
class Overload:
    """What came of it.

    Attributes:
        deadline_s: of the devices, before and during.
        crowd: who asked too much.
        before: the devices' requests while the pool had room.
        probe: while it was found out what the pool can do.
        during: and while it had not.
        changes: of thresholds in force, as the agents explained them.
        queue_empty_after_s: seconds from the crowd's end until nothing waited; None:
            not within the time there was.
        agents: their account of the promise after it.
    """

    deadline_s: float
    crowd: Crowd
    before: Moment
    probe: Moment
    during: Moment
    changes: list[Change]
    queue_empty_after_s: float | None
    agents: list[ByAgent]

    @property
    def way_down(self) -> list[Change]:
        """How the agent that gave way furthest did so; empty when none did."""
        lowered = [each for each in self.changes if _lowers(each)]
        if not lowered:
            return []
        deepest = min(lowered, key=lambda each: _height(each.new))
        until = lowered[: lowered.index(deepest) + 1]
        return [each for each in until if each.agent == deepest.agent]

    @property
    def cost(self) -> float:
        """How much less the cloud was worth to the devices than before, 0..1.

        Against the edge alone on the same images, which are not as many of each before
        and during.
        """
        return self.before.gain - self.during.gain

    def document(self) -> dict[str, Any]:
        """As `--json` writes it."""
        return {**asdict(self), "cost": round(self.cost, 4)}


def moment(asked: Sequence[Asked], labels: Sequence[str], edge_right: Flags) -> Moment:
    """Measure the requests of one stage.

    Args:
        asked: of every device.
        labels: the name of each class.
        edge_right: for each image whether the edge model alone is right.
    """
    fates: Mapping[str, int] = Counter(map(fate, asked))
    spared = sum(map(held_back, asked))
    took_ms = [
        each.outcome.at_ms - each.at_ms
        for each in asked
        if each.outcome is not None and each.outcome.status == "answered"
    ]
    p50, p99 = np.percentile(took_ms, [50, 99]) if took_ms else (None, None)
    return Moment(
        requests=len(asked),
        p50_ms=None if p50 is None else round(float(p50), 2),
        p99_ms=None if p99 is None else round(float(p99), 2),
        spill_rate=share([spilled(each) for each in asked]),
        answered_edge=fates["edge"],
        answered_cloud=fates["cloud"],
        held_back=spared,
        too_late=fates["edge_fallback"] - spared,
        unanswered=sum(fates[each] for each in UNANSWERED),
        lost=fates[LOST],
        duplicated=duplicated(asked),
        accuracy=share([is_right(each, labels) for each in asked]),
        edge_only_accuracy=share([bool(edge_right[each.index]) for each in asked]),
    )


def faults(overload: Overload) -> list[str]:
    """What must not happen under overload, and did."""
    found = []
    during, limit_ms = overload.during, 1000.0 * overload.deadline_s
    lost, twice, unanswered = (
        getattr(overload.probe, name) + getattr(during, name)
        for name in ("lost", "duplicated", "unanswered")
    )
    if lost:
        found.append(f"{lost} requests were lost under overload")
    if twice:
        found.append(f"{twice} requests were answered more than once under overload")
    if unanswered:
        found.append(f"{unanswered} requests had no answer under overload")
    if during.p99_ms is None or during.p99_ms > limit_ms:
        found.append(
            f"under overload p99 was {during.p99_ms} ms, and the deadline {limit_ms:g} ms"
        )
    if overload.queue_empty_after_s is None:
        found.append("the queue was not empty in time after the overload")
    return found


def _lowers(change: Change) -> bool:
    return _height(change.new) < _height(change.old)


def _height(threshold: float | None) -> float:
    return -np.inf if threshold is None else threshold
