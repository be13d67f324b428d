"""Decide whether a version on probation stays, goes on being watched, or returns.

Bare shares of a few requests say little, so every share is judged by an interval: a
version returns when even the better end of what is believable of it is too bad. It
is looked at again and again, hence an interval wide enough to be looked at so often.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from broker.messages import UpdatePolicy
from edge_agent.core.health import Account

# One-sided 0.05 %: a probation is looked at some hundred times.
Z: Final = 3.29
MIN_ERRORS: Final = 3
MIN_COMPARED: Final = 20
MIN_RUNS: Final = 30
# Audits are without bias; from so many on, they alone are asked.
MIN_CHOSEN: Final = 50
# Faster than this is fast enough, whatever the version before did.
ENOUGH_MS: Final = 0.5
MAX_STARTS: Final = 3
# Nobody asks it so much: what has served for a day without harm is not waited for.
LONGEST_S: Final = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Watching:
    """Nothing is decided yet."""


@dataclass(frozen=True, slots=True)
class Commit:
    """It has served long and often enough, and nothing speaks against it."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """It returns to the version before; says why, with figures."""

    reason: str


def judge_probation(
    policy: UpdatePolicy, now: Account, before: Account | None, served_s: float
) -> Watching | Commit | GiveUp:
    """What has come of a probation so far.

    It ends: where too few requests come, a day without anything against the version
    (or `probation_s`, if that is longer) stands for those that are missing.

    Args:
        policy: of this update.
        now: the books of the version on probation.
        before: those of the version that it replaces; None when there was none.
        served_s: how long it has served, over restarts.
    """
    why = (
        _errors(policy, now) or _agreement(policy, now, before)
        if now.requests
        else None
    ) or _latency(policy, now, before)
    if why is not None:
        return GiveUp(why)
    asked_enough = now.requests >= policy.probation_requests or served_s >= LONGEST_S
    if served_s >= policy.probation_s and asked_enough:
        return Commit()
    return Watching()


def ended_too_often(starts: int) -> str | None:
    """Why a version may not be started once more; None when it may.

    Args:
        starts: how many starts have ended without order while it was on probation.
    """
    if starts < MAX_STARTS:
        return None
    return (
        f"the agent has ended {starts} times while it was on probation "
        "(a crash, a hang or a power cut)"
    )


def between(agreed: int, of: int, z: float = Z) -> tuple[float, float]:
    """Where a share lies, by Wilson's interval."""
    if of <= 0:
        return (0.0, 1.0)
    share, square = agreed / of, z * z
    middle = (share + square / (2 * of)) / (1 + square / of)
    half = (
        z
        / (1 + square / of)
        * math.sqrt(share * (1 - share) / of + square / (4 * of * of))
    )
    return (max(0.0, middle - half), min(1.0, middle + half))


def drop_at_least(before: tuple[int, int], now: tuple[int, int], z: float = Z) -> float:
    """The least by which a share has believably dropped, by Newcombe's interval.

    Args:
        before: how many agreed, of how many.
        now: the same.
        z: so many standard deviations.
    """
    p, (p_low, _) = before[0] / before[1], between(*before, z)
    q, (_, q_high) = now[0] / now[1], between(*now, z)
    return (p - q) - math.hypot(p - p_low, q_high - q)


def _errors(policy: UpdatePolicy, now: Account) -> str | None:
    low, _ = between(now.errors, now.requests)
    if now.errors < MIN_ERRORS or low <= policy.max_error_share:
        return None
    return (
        f"{now.errors} of {now.requests} requests failed: at least {low:.1%}, "
        f"{policy.max_error_share:.1%} are allowed"
    )


def _agreement(
    policy: UpdatePolicy, now: Account, before: Account | None
) -> str | None:
    if before is None:
        return None
    was, is_ = (before.agreed, before.compared), (now.agreed, now.compared)
    if min(before.chosen, now.chosen) >= MIN_CHOSEN:
        was, is_ = (
            (before.chosen_agreed, before.chosen),
            (now.chosen_agreed, now.chosen),
        )
    if min(was[1], is_[1]) < MIN_COMPARED:
        return None
    drop = drop_at_least(was, is_)
    if drop <= policy.max_agreement_drop:
        return None
    return (
        f"it agrees with the cloud on {is_[0]} of {is_[1]} requests, the version before "
        f"did on {was[0]} of {was[1]}: a drop of at least {drop:.1%}, "
        f"{policy.max_agreement_drop:.1%} are allowed"
    )


def _latency(policy: UpdatePolicy, now: Account, before: Account | None) -> str | None:
    if before is None or min(now.latencies.runs, before.latencies.runs) < MIN_RUNS:
        return None
    is_, was = now.latencies.median_between(Z), before.latencies.median_between(Z)
    if is_ is None or was is None or is_[0] <= ENOUGH_MS:
        return None
    if is_[0] <= policy.max_slowdown * was[1]:
        return None
    return (
        f"its median run takes at least {is_[0]:.3g} ms, that of the version before at "
        f"most {was[1]:.3g} ms: {policy.max_slowdown:g} times that is allowed"
    )
