"""Which candidate is taken, and why. Nothing here was measured on the test part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np

from cascade.curves import Curve
from cascade.targets import MaxError, MaxExcess, MaxSpill, Target

# Closer than this to the best is as good: the smaller file is taken.
SAME_COST: Final = 0.003
# Spilled where no target says how much.
DEFAULT_SPILL: Final = 0.10


@dataclass(frozen=True, slots=True)
class Constraints:
    """What a candidate has to keep to; None sets no limit.

    Attributes:
        max_kb: of the file, in 1000 bytes.
        max_ms: p50 of one invocation with one thread, on the machine that builds.
        max_spill: the share spilled to keep the target, 0..1.
        max_accuracy_drop: how much less often than the cloud's its answers may be
            right, alone, 0..1.
    """

    max_kb: float | None = None
    max_ms: float | None = None
    max_spill: float | None = None
    max_accuracy_drop: float | None = None


@dataclass(frozen=True, slots=True)
class Considered:
    """What the choice looks at.

    Attributes:
        name: of the candidate.
        size_bytes: of its file.
        p50_ms: of one invocation.
        accuracy: alone, on the choose part.
        cloud_accuracy: on the choose part; None without a cloud model.
        spill: the share spilled that meets the target there; None when none does.
        cost: what is to be least: that share, or how often the cascade is wrong.
    """

    name: str
    size_bytes: int
    p50_ms: float
    accuracy: float
    cloud_accuracy: float | None
    spill: float | None
    cost: float


@dataclass(frozen=True, slots=True)
class Choice:
    """What was taken.

    Attributes:
        chosen: its name; None when every candidate breaks a constraint.
        why: for people.
        broken: the constraints that each of the others breaks, by name.
        front: names of those that no other beats in size, time and cost at once.
    """

    chosen: str | None
    why: str
    broken: dict[str, tuple[str, ...]]
    front: tuple[str, ...]


def spill_and_cost(
    curve: Curve | None,
    accuracy: float,
    target: Target | None,
    calibrated_on: int | None = None,
) -> tuple[float | None, float]:
    """The share spilled that meets a target on these examples, and what it costs.

    Args:
        curve: of the cascade; None without a cloud model.
        accuracy: of the edge alone.
        target: for a limit on risk the cost is the share spilled; for a limit on
            spilling, or none, it is how often the cascade is wrong.
        calibrated_on: how many examples the threshold will be set on; it will stop as
            far from the target as they are few, and that is part of the cost.
    """
    if isinstance(target, MaxExcess | MaxError):
        if curve is None:
            return None, 1.0
        need = (
            1 - target.error
            if isinstance(target, MaxError)
            else (float(curve.accuracy[-1]) - target.excess)
        ) + _distance(target, calibrated_on)
        # From all spilled downwards, as the calibration walks.
        good = curve.accuracy >= need - 1e-12
        if not good[-1]:
            return None, 1.0
        bad = np.flatnonzero(~good)
        first = int(bad[-1]) + 1 if len(bad) else 0
        return float(curve.spilled[first]), float(curve.spilled[first])
    share = target.share if isinstance(target, MaxSpill) else DEFAULT_SPILL
    if curve is None:
        return share, 1 - accuracy
    return share, 1 - curve.accuracy_at(share)


def _distance(target: MaxExcess | MaxError, examples: int | None) -> float:
    """About how far from a target a calibration on so many examples stops."""
    if examples is None or target.confidence is None:
        return 0.0
    limit = target.error if isinstance(target, MaxError) else target.excess
    errors = NormalDist().inv_cdf(target.confidence)
    # What is left of the limit is never less than nothing: all spilled keeps it.
    return min(limit, max(0.0, errors) * math.sqrt(limit * (1 - limit) / examples))


def choose(considered: Sequence[Considered], limits: Constraints) -> Choice:
    """Take the smallest of the best among those that keep to every limit.

    Args:
        considered: one or more.
        limits: those that a candidate breaks take it out.
    """
    broken = {each.name: _broken(each, limits) for each in considered}
    fit = [each for each in considered if not broken[each.name]]
    front = tuple(each.name for each in pareto_front(considered))
    broken = {name: why for name, why in broken.items() if why}
    if not fit:
        closest = min(considered, key=lambda each: (len(broken[each.name]), each.cost))
        return Choice(
            None,
            "no candidate keeps to every limit; the closest is "
            f"{closest.name}: {'; '.join(broken[closest.name])}",
            broken,
            front,
        )
    best = min(fit, key=lambda each: each.cost)
    as_good = [each for each in fit if each.cost <= best.cost + SAME_COST]
    chosen = min(as_good, key=lambda each: (each.size_bytes, each.p50_ms, each.name))
    return Choice(chosen.name, _why(chosen, best, len(fit), limits), broken, front)


def pareto_front(considered: Sequence[Considered]) -> list[Considered]:
    """Those that no other equals or beats in size, time and cost, and beats in one."""
    return [each for each in considered if not any(_beats(o, each) for o in considered)]


def _beats(one: Considered, other: Considered) -> bool:
    ours = (one.size_bytes, one.p50_ms, one.cost)
    theirs = (other.size_bytes, other.p50_ms, other.cost)
    return ours != theirs and all(a <= b for a, b in zip(ours, theirs, strict=True))


def _broken(each: Considered, limits: Constraints) -> tuple[str, ...]:
    kb = each.size_bytes / 1000
    said = []
    if limits.max_kb is not None and kb > limits.max_kb:
        said.append(f"{kb:.1f} KB, and {limits.max_kb:g} are allowed")
    if limits.max_ms is not None and each.p50_ms > limits.max_ms:
        said.append(f"{each.p50_ms:.3g} ms, and {limits.max_ms:g} are allowed")
    if limits.max_accuracy_drop is not None and each.cloud_accuracy is not None:
        drop = each.cloud_accuracy - each.accuracy
        if drop > limits.max_accuracy_drop:
            said.append(
                f"alone {100 * drop:.2f} points worse than the cloud, and "
                f"{100 * limits.max_accuracy_drop:g} are allowed"
            )
    if limits.max_spill is not None:
        if each.spill is None:
            said.append("no share spilled meets the target")
        elif each.spill > limits.max_spill + 1e-12:
            said.append(
                f"{each.spill:.1%} spilled to meet the target, and "
                f"{limits.max_spill:.1%} may be"
            )
    return tuple(said)


def _why(chosen: Considered, best: Considered, fit: int, limits: Constraints) -> str:
    kept = "every limit" if limits != Constraints() else "what there is"
    if chosen == best:
        return f"{chosen.name} costs least of the {fit} that keep to {kept}"
    return (
        f"{chosen.name} is the smallest of those within {100 * SAME_COST:g} points of "
        f"the best ({best.name}), of the {fit} that keep to {kept}"
    )
