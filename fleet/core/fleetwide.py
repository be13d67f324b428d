"""All rollouts beside one another: which still matter, and which agent follows which.

Rollouts of different models know nothing of each other. Of one model, a newer one takes
the agents that it has or will have; one whose agents are all taken is superseded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from fleet.core.advancing import View, advance
from fleet.core.devices import Device
from fleet.core.following import Now
from fleet.core.machine import OPEN, Event, Step, can, order
from fleet.core.plan import Chosen, Needs, choose
from fleet.core.rollouts import LIVE, Course, Rollout, RolloutState

# A rollout in one of these will tell more agents: they are taken from older ones.
WIDENS = frozenset(
    {
        RolloutState.RUNNING,
        RolloutState.AWAITING_APPROVAL,
        RolloutState.PAUSED,
        *OPEN,
    }
)
FOLLOWED = LIVE | OPEN | {RolloutState.ROLLED_BACK}


@dataclass(frozen=True, slots=True)
class Fleet:
    """The inventory as rollouts see it.

    Attributes:
        devices: every known agent, by name.
        labels: operators' labels, by agent.
        needs: what versions ask of a device, by model and version.
        now: the time.
    """

    devices: Mapping[str, Device]
    labels: Mapping[str, Mapping[str, str]]
    needs: Mapping[tuple[str, str], Needs]
    now: Now


@dataclass(frozen=True, slots=True)
class Advanced:
    """One rollout after a look; `before` is its course before it."""

    rollout: Rollout
    before: Course
    step: Step
    chosen: Chosen


def relevant(
    rollouts: Collection[Rollout], states: Mapping[int, RolloutState]
) -> list[Rollout]:
    """Those that may still do something, newest first."""
    left: list[Rollout] = []
    settled: list[Rollout] = []
    for each in sorted(rollouts, key=lambda one: one.generation, reverse=True):
        state = states[each.generation]
        buried = any(newer.buries(each) for newer in settled)
        if state in LIVE or (state in FOLLOWED and not buried):
            left.append(each)
        if state in OPEN:
            settled.append(each)
    return left


def advance_all(
    rollouts: Collection[Rollout], courses: Mapping[int, Course], fleet: Fleet
) -> list[Advanced]:
    """One look at each of `relevant` rollouts, newest first."""
    done: list[Advanced] = []
    for rollout in sorted(rollouts, key=lambda one: one.generation, reverse=True):
        before = courses[rollout.generation]
        newer = [each for each in done if each.rollout.model == rollout.model]
        needs = fleet.needs.get((rollout.model, rollout.version), Needs())
        chosen = choose(rollout, fleet.devices, fleet.labels, needs)
        superseded = _superseded(rollout, before, newer, fleet.now.now_ms)
        if superseded is not None:
            done.append(Advanced(rollout, before, superseded, chosen))
            continue
        view = View(
            fleet.devices,
            chosen.eligible,
            fleet.now,
            taken_by(newer),
            chosen.excluded,
        )
        done.append(Advanced(rollout, before, advance(rollout, before, view), chosen))
    return done


def taken_by(newer: Collection[Advanced]) -> frozenset[str]:
    """The agents that newer rollouts of a model have, or will have."""
    taken: set[str] = set()
    for each in newer:
        taken.update(each.step.course.told)
        if each.step.course.state in WIDENS:
            taken.update(each.chosen.eligible)
    return frozenset(taken)


def _superseded(
    rollout: Rollout, course: Course, newer: Collection[Advanced], now_ms: int
) -> Step | None:
    by = next(
        (
            each.rollout
            for each in newer
            if each.rollout.buries(rollout) and each.step.course.state in WIDENS
        ),
        None,
    )
    if by is None or not can(course, Event.SUPERSEDE):
        return None
    reason = f"rollout {by.generation} of {by.model} {by.version} took its agents"
    return order(rollout, course, Event.SUPERSEDE, reason, now_ms)


def changed(advanced: Advanced) -> bool:
    """Whether there is anything to write but the records of agents."""
    bare = replace(advanced.step.course, told={})
    return bare != replace(advanced.before, told={})
