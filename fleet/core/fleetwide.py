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
    """Those that may still do something, newest first.

    Of those that have ended, only what newer ones together have not taken: so there
    are never more than agents (or queries), however long the history is.
    """
    left: list[Rollout] = []
    covers: dict[str, _Cover] = {}
    for each in sorted(rollouts, key=lambda one: one.generation, reverse=True):
        state = states[each.generation]
        cover = covers.setdefault(each.model, _Cover())
        if state in LIVE or (state in FOLLOWED and not cover.has(each)):
            left.append(each)
        if state in OPEN:
            cover.add(each)
    return left


class _Cover:
    """What rollouts of a model that are through have taken from every older one."""

    def __init__(self) -> None:
        self._everybody = False
        self._agents: set[str] = set()
        self._queries: set[str] = set()
        # Named agents, as far as they match a query.
        self._of_query: dict[str, set[str]] = {}

    def add(self, rollout: Rollout) -> None:
        targets, query = rollout.targets, rollout.query
        if query is None and targets is None:
            self._everybody = True
        elif query is None and targets is not None:
            self._agents |= targets
        elif query is not None and targets is None:
            self._queries.add(query)
        elif query is not None and targets is not None:
            self._of_query.setdefault(query, set()).update(targets)

    def has(self, older: Rollout) -> bool:
        query = older.query
        if self._everybody or query in self._queries:
            return True
        if older.targets is None:
            return False
        left = older.targets - self._agents
        return not left - self._of_query.get(query or "", set())


def advance_all(
    rollouts: Collection[Rollout],
    states: Mapping[int, RolloutState],
    courses: Mapping[int, Course],
    fleet: Fleet,
) -> list[Advanced]:
    """One look at each of `relevant` rollouts, newest first.

    Those that have ended are left out once newer ones have every agent; `courses` is
    not asked for them.
    """
    done: list[Advanced] = []
    # By model: who is left for older ones, and who is not.
    left: dict[str, dict[str, Device]] = {}
    taken: dict[str, set[str]] = {}
    for rollout in sorted(rollouts, key=lambda one: one.generation, reverse=True):
        model, live = rollout.model, states[rollout.generation] in LIVE
        if model not in left:
            left[model], taken[model] = dict(fleet.devices), set()
        mine, gone = left[model], taken[model]
        if gone and not mine and not live:
            continue
        before = courses[rollout.generation]
        newer = [each for each in done if each.rollout.model == model] if live else ()
        needs = fleet.needs.get((model, rollout.version), Needs())
        chosen = choose(rollout, fleet.devices if live else mine, fleet.labels, needs)
        step = _superseded(rollout, before, newer, fleet.now.now_ms)
        if step is None:
            view = View(fleet.devices, chosen.eligible, fleet.now, gone, _unfit(chosen))
            step = advance(rollout, before, view)
        done.append(Advanced(rollout, before, step, chosen))
        news = taken_by(done[-1:]) - gone
        gone |= news
        for agent in news:
            mine.pop(agent, None)
    return done


def taken_by(newer: Collection[Advanced]) -> frozenset[str]:
    """The agents that newer rollouts of a model have, or will have."""
    taken: set[str] = set()
    for each in newer:
        taken.update(each.step.course.told)
        if each.step.course.state in WIDENS:
            taken.update(each.chosen.eligible)
    return frozenset(taken)


def _unfit(chosen: Chosen) -> Mapping[str, str]:
    """Who cannot take the version, and not only for want of room now."""
    return {
        agent: why
        for agent, why in chosen.excluded.items()
        if agent not in chosen.crowded
    }


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
