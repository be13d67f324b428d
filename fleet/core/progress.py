"""How far rollouts are, as people want to see it. Everything is worked out at each look."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from fleet.core.cohorts import cut, is_last
from fleet.core.devices import Device
from fleet.core.fleetwide import Advanced, taken_by
from fleet.core.following import Now, standing
from fleet.core.plan import Chosen
from fleet.core.rollouts import (
    GONE_BACK,
    LIVE,
    AgentState,
    Course,
    Rollout,
    RolloutState,
)


@dataclass(frozen=True, slots=True)
class AgentProgress:
    """One agent's part in a rollout; `version` is what it serves now.

    `wave` is the one it was told in, None when it was not.
    """

    agent: str
    state: AgentState
    version: str | None = None
    reason: str | None = None
    last_seen_ms: int | None = None
    wave: int | None = None


@dataclass(frozen=True, slots=True)
class RolloutProgress:
    """A rollout, how far it is, and each of its agents, by name.

    `reaches` is how many agents are told by the end of the wave on its way.
    """

    rollout: Rollout
    course: Course
    agents: tuple[AgentProgress, ...]
    reaches: int
    last_wave: bool

    @property
    def state(self) -> RolloutState:
        """How far it is in all."""
        return self.course.state

    @property
    def live(self) -> bool:
        """Whether it still goes on by itself or waits for a person."""
        return self.course.state in LIVE

    def count(self, *states: AgentState) -> int:
        """How many agents are in one of `states`."""
        return sum(each.state in states for each in self.agents)


def progress(
    rollout: Rollout,
    course: Course,
    chosen: Chosen,
    devices: Mapping[str, Device],
    now: Now,
    taken: Collection[str] = frozenset(),
) -> RolloutProgress:
    """How far one rollout is.

    Args:
        rollout: the one asked about.
        course: how far it is.
        chosen: who may be told, and who not.
        devices: every known agent, by name.
        now: the time.
        taken: agents that newer rollouts of the model have or will have.
    """
    names = {*course.told, *chosen.eligible, *chosen.excluded}
    if rollout.targets is not None and rollout.query is None:
        names |= rollout.targets
    agents = tuple(
        _of_agent(rollout, course, chosen, agent, devices.get(agent), now, taken)
        for agent in sorted(names)
    )
    # As `advancing` counts them: whom it has told stays one of them.
    known = {each for each in course.told if each in devices}
    left = known.union(chosen.eligible).difference(taken)
    return RolloutProgress(
        rollout,
        course,
        agents,
        reaches=cut(rollout, course.wave, len(left)),
        last_wave=is_last(rollout, course.wave, len(left)),
    )


def all_progress(
    advanced: Collection[Advanced], devices: Mapping[str, Device], now: Now
) -> list[RolloutProgress]:
    """How far rollouts are that were looked at together, newest first."""
    return [
        progress(
            each.rollout,
            _shown(each),
            each.chosen,
            devices,
            now,
            taken_by(
                [
                    other
                    for other in advanced
                    if other.rollout.model == each.rollout.model
                    and other.rollout.generation > each.rollout.generation
                ]
            ),
        )
        for each in advanced
    ]


def _shown(advanced: Advanced) -> Course:
    """How far it is by the newest reports, without what only the daemon will do."""
    course, before = advanced.step.course, advanced.before
    if not advanced.step.agents:
        return course
    told = {agent: course.told[agent] for agent in before.told}
    if course.state in GONE_BACK and before.state not in GONE_BACK:
        told = dict(before.told)
    return replace(before, told=told)


def _of_agent(  # noqa: PLR0913, PLR0917 - all that bears on one agent
    rollout: Rollout,
    course: Course,
    chosen: Chosen,
    agent: str,
    device: Device | None,
    now: Now,
    taken: Collection[str],
) -> AgentProgress:
    told = course.told.get(agent)
    slot = None if device is None else device.slot(rollout.model)
    seen = None if device is None else device.last_seen_ms
    version = None if slot is None else slot.active
    gone = agent in taken or (device is None and told is not None)
    over = course.state is RolloutState.SUPERSEDED or gone
    if told is not None:
        state = AgentState.SUPERSEDED if over else standing(rollout, told, device, now)
        reason = None if over else told.reason
        return AgentProgress(agent, state, version, reason, seen, told.wave)
    reason = chosen.excluded.get(agent)
    if over:
        state = AgentState.SUPERSEDED
    elif reason is not None:
        state = AgentState.EXCLUDED
    elif now.heard(device) or course.state in GONE_BACK:
        state = AgentState.QUEUED
    else:
        state = AgentState.SILENT
    return AgentProgress(agent, state, version, reason, seen)
