"""The threshold in force. Overload costs some accuracy, never latency; each change is told.

The calibrated threshold says what should be spilled. What can be is a share of that: all
while the pool answers in good time and there is budget, less as either runs short, and
none while the link is down. The share becomes a threshold by the calibrated scores, so
that the least sure are always spilled first. It never passes the calibrated threshold
unless a ceiling is given. Nothing here is remembered but `InForce`, which the caller
hands back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cascade.policy import Thresholds

_STEPS_OF_LADDER: Final = 64
_CALIBRATED: Final = "as calibrated"


@dataclass(frozen=True, slots=True)
class Ladder:
    """A calibrated threshold, and those that spill a share of what it spills.

    Attributes:
        threshold: the calibrated one.
        rungs: rising, the last is `threshold`: rung i of k spills about (i + 1) / k of
            what it does. Nothing but the threshold where scores are not known.
    """

    threshold: float
    rungs: tuple[float, ...] = ()

    def at(self, share: float) -> float:
        """The threshold that spills `share` of what the calibrated one does.

        Args:
            share: 0..1; 0 spills nothing.

        Returns:
            -inf at 0, the calibrated one at 1. Without rungs nothing lies between.
        """
        if share >= 1:
            return self.threshold
        rung = math.floor(share * len(self.rungs) + 1e-9) - 1
        return self.rungs[rung] if rung >= 0 else -math.inf


def ladder(confidence: NDArray[np.floating[Any]], threshold: float) -> Ladder:
    """The ladder of a threshold, by the scores it was calibrated on.

    Args:
        confidence: [n]; -inf where an answer is unusable.
        threshold: the calibrated one.
    """
    under = np.sort(confidence[(confidence < threshold) & np.isfinite(confidence)])
    if not under.size:
        return Ladder(threshold)
    shares = np.arange(1, _STEPS_OF_LADDER) / _STEPS_OF_LADDER
    at = np.minimum((shares * len(under)).astype(int), len(under) - 1)
    return Ladder(threshold, (*under[at].tolist(), threshold))


@dataclass(frozen=True, slots=True)
class Conditions:
    """What the threshold depends on besides calibration.

    Attributes:
        link_up: whether the cloud can be reached.
        wait_s: how long a spill is expected to wait for its answer; None: not known.
        deadline_s: how long a request can wait; None: as long as it takes.
        bytes_left: of the byte budget, 0..1; None without one.
        spills_left: of the spill quota, 0..1; None without one.
    """

    link_up: bool = True
    wait_s: float | None = None
    deadline_s: float | None = None
    bytes_left: float | None = None
    spills_left: float | None = None


@dataclass(frozen=True, slots=True)
class Give:
    """When to give way, and how far.

    Attributes:
        easy_wait: the share of the deadline up to which a wait costs nothing. From
            there on the share spilled falls, to nothing at the whole deadline.
        reserve: what is left of a budget or quota when the share begins to fall.
        steps: so many different shares, so that a threshold does not tremble.
        ceiling: a threshold over the calibrated one, for when there is plenty of
            everything; None never passes the calibrated one.
        idle_wait: the share of the deadline under which the pool counts as idle.
    """

    easy_wait: float = 0.5
    reserve: float = 0.25
    steps: int = 16
    ceiling: float | None = None
    idle_wait: float = 0.05


@dataclass(frozen=True, slots=True)
class InForce:
    """The threshold in force.

    Attributes:
        threshold: answers under it are spilled; -inf spills none.
        share: of what the calibrated threshold spills, 0..1.
        why: for people.
    """

    threshold: float
    share: float = 1.0
    why: str = _CALIBRATED


@dataclass(frozen=True, slots=True)
class ClassLadders:
    """The ladders of classes whose answers have thresholds of their own.

    Attributes:
        ladders: by the index of the class that is answered.
    """

    ladders: Mapping[int, Ladder] = field(default_factory=dict)

    @property
    def known(self) -> bool:
        """Whether a class's scores are known, so that it can give way by steps."""
        return any(each.rungs for each in self.ladders.values())

    def at(self, now: InForce) -> Thresholds:
        """What is enough for each class while `now` is in force.

        Every class gives way by the same share. One whose scores are not known keeps
        its threshold until the common one in force is lower: no class is ever spilled
        more than calibrated, nor at all where nothing is.
        """
        return Thresholds(
            now.threshold,
            {index: self._of_class(each, now) for index, each in self.ladders.items()},
        )

    @staticmethod
    def _of_class(own: Ladder, now: InForce) -> float:
        if now.share >= 1:
            return own.threshold
        if own.rungs:
            return own.at(now.share)
        return min(own.threshold, now.threshold)


@dataclass(frozen=True, slots=True)
class Change:
    """The threshold in force has changed.

    Attributes:
        old: before.
        new: after.
        why: for people.
    """

    old: float
    new: float
    why: str


@dataclass(frozen=True, slots=True)
class _Limit:
    share: float
    why: str


def in_force(
    now: InForce, base: Ladder, conditions: Conditions, give: Give | None = None
) -> tuple[InForce, Change | None]:
    """What is in force under these conditions.

    Less is given at once, and taken back a step and a half later than it was given, so
    that a wait that hovers changes nothing.

    Args:
        now: what is in force; `InForce(base.threshold)` at first.
        base: the calibrated threshold.
        conditions: as they are.
        give: when to give way.

    Returns:
        What is in force now, and the change if the threshold is another.
    """
    give = give or Give()
    limit = _least(conditions, give)
    wanted = limit.share * give.steps
    level = (
        min(give.steps, math.floor(wanted + 1e-9)) if limit.share < 1 else give.steps
    )
    held = math.floor(now.share * give.steps + 1e-9)
    if level > held and wanted < held + 1.5:
        level = held
    share = level / give.steps
    if share == 1.0 and give.ceiling is not None and _plenty(conditions, give):
        new = InForce(max(give.ceiling, base.threshold), 1.0, "the pool is idle")
    else:
        new = InForce(base.at(share), share, limit.why if share < 1 else _CALIBRATED)
    if new.threshold == now.threshold:
        return InForce(now.threshold, share, new.why), None
    return new, Change(now.threshold, new.threshold, new.why)


def _least(conditions: Conditions, give: Give) -> _Limit:
    """Whatever leaves the least to spill; a share over 1 has room to spare."""
    if not conditions.link_up:
        return _Limit(0.0, "the link is down")
    limits = [_Limit(math.inf, _CALIBRATED)]
    wait, deadline = conditions.wait_s, conditions.deadline_s
    if wait is not None and deadline is not None:
        used = wait / deadline if deadline > 0 else math.inf
        share = 1.0 - (used - give.easy_wait) / (1.0 - give.easy_wait)
        limits.append(
            _Limit(
                max(share, 0.0),
                f"a spill waits {wait:.2f} s of {deadline:.2f} s",
            )
        )
    for left, what in (
        (conditions.bytes_left, "byte budget"),
        (conditions.spills_left, "spill quota"),
    ):
        if left is not None:
            limits.append(
                _Limit(
                    max(left / give.reserve, 0.0),
                    f"{left:.0%} of the {what} is left",
                )
            )
    return min(limits, key=lambda each: each.share)


def _plenty(conditions: Conditions, give: Give) -> bool:
    wait, deadline = conditions.wait_s, conditions.deadline_s
    if wait is None or (deadline is not None and wait > give.idle_wait * deadline):
        return False
    lefts = (conditions.bytes_left, conditions.spills_left)
    return all(left is None or left > 2 * give.reserve for left in lefts)
