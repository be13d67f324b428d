"""A rollout as a person looks at it: its waves, its gates, and the agents that failed.

Everything is counted from the order, the course and what is known of the fleet; `changes`
is what is new between two looks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from fleet.core.cohorts import cut, is_last, wave_of
from fleet.core.devices import Device
from fleet.core.differences import reach
from fleet.core.following import Now, standing
from fleet.core.gates import Decision, Verdict
from fleet.core.rollouts import (
    FAILED_AGENT,
    GONE_BACK,
    LIVE,
    MOVING,
    AgentState,
    Course,
    Rollout,
    RolloutState,
)

MAX_WAVES: Final = 100
BACK: Final = frozenset({AgentState.BACK, AgentState.GOING_BACK})


class WaveState(StrEnum):
    """Where a wave is."""

    PASSED = "passed"
    MOVING = "moving"
    SOAKING = "soaking"
    UNSURE = "waits for its gates"
    APPROVAL = "waits for approval"
    PAUSED = "paused"
    STOPPED = "stopped"
    TO_COME = "to come"


@dataclass(frozen=True, slots=True)
class AgentLine:
    """One agent that was told, as it stands now; `last_seen_ms` is None if unknown."""

    agent: str
    wave: int
    state: AgentState
    version: str | None
    reason: str | None
    last_seen_ms: int | None
    shadow: bool = False


@dataclass(frozen=True, slots=True)
class WaveLine:
    """One wave.

    Attributes:
        index: from 0 on.
        reach: how far it spreads the version, as it was ordered.
        total: how many agents that is in all, with those of earlier waves.
        agents: how many of them are this wave's own.
        updated: of its own, how many serve the version (or run it as a shadow).
        failed: and how many failed.
        moving: and how many are on their way.
        state: where it is.
        left_s: how long it still soaks.
        shadow: whether the candidate only runs beside.
        approve: whether a person is asked after it.
    """

    index: int
    reach: str
    total: int
    agents: int
    updated: int
    failed: int
    moving: int
    state: WaveState
    left_s: float = 0.0
    shadow: bool = False
    approve: bool = False


@dataclass(frozen=True, slots=True)
class Outlook:
    """All that is shown of one rollout.

    Attributes:
        rollout: as it was ordered.
        course: how far it is.
        agents: every told agent, by name.
        waves: those begun and those to come.
        eligible: how many agents it may reach.
        away: how many of them were not told and are not there.
        excluded: why others may not be told, by agent.
        now_ms: when this was.
    """

    rollout: Rollout
    course: Course
    agents: tuple[AgentLine, ...] = ()
    waves: tuple[WaveLine, ...] = ()
    eligible: int = 0
    away: int = 0
    excluded: Mapping[str, str] = field(default_factory=dict)
    now_ms: int = 0

    @property
    def state(self) -> RolloutState:
        """That of the rollout."""
        return self.course.state

    @property
    def ended(self) -> bool:
        """Whether nothing more happens by itself that a person would wait for."""
        return self.state not in LIVE

    def count(self, *states: AgentState) -> int:
        """How many told agents are in one of `states`."""
        return sum(each.state in states for each in self.agents)

    @property
    def updated(self) -> int:
        """How many serve the version."""
        return self.count(AgentState.UPDATED)

    @property
    def failed(self) -> tuple[AgentLine, ...]:
        """The agents that failed, the latest wave first."""
        bad = [each for each in self.agents if each.state in FAILED_AGENT]
        return tuple(sorted(bad, key=lambda each: (-each.wave, each.agent)))


def outlook(
    rollout: Rollout,
    course: Course,
    devices: Mapping[str, Device],
    now: Now,
    eligible: tuple[str, ...] | None = None,
    excluded: Mapping[str, str] | None = None,
) -> Outlook:
    """The rollout as it stands.

    Args:
        rollout: as it was ordered.
        course: how far it is.
        devices: every known agent.
        now: the time; silence and standing still are worked out with it.
        eligible: who may be told; None for a rollout that tells nobody any more.
        excluded: why others may not.
    """
    lines = tuple(
        _agent(rollout, course, devices, now, each) for each in sorted(course.told)
    )
    may = tuple(course.told) if eligible is None else eligible
    away = sum(
        each not in course.told and not now.heard(devices.get(each)) for each in may
    )
    return Outlook(
        rollout,
        course,
        agents=lines,
        waves=tuple(_waves(rollout, course, lines, len(may), now)),
        eligible=len(may),
        away=away,
        excluded=dict(excluded or {}),
        now_ms=now.now_ms,
    )


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that is new; `text` is a sentence, `details` the same for programs."""

    kind: str
    text: str
    details: Mapping[str, Any]


def changes(before: Outlook, after: Outlook) -> Iterator[Change]:
    """What is new since an earlier look, in the order in which it is told."""
    was = {each.agent: each for each in before.agents}
    waves = max(len(after.waves), after.course.wave + 1)
    if after.course.wave > before.course.wave:
        number = after.course.wave + 1
        yield Change(
            "wave",
            f"wave {number} of {waves} begins",
            {"wave": number, "waves": waves},
        )
    for each in after.agents:
        one = was.get(each.agent)
        if (one is None or one.state is not each.state) and each.state in FAILED_AGENT:
            yield Change(
                "agent",
                f"{each.agent} {each.state.value}: {each.reason or _why(each.state)}",
                {"agent": each.agent, "state": each.state.value, "reason": each.reason},
            )
    counts = _counts(after)
    if counts != _counts(before):
        yield Change("agents", _counted(after), counts)
    yield from _gate_changes(before, after)
    if after.state is not before.state or after.course.reason != before.course.reason:
        said = after.state.value.replace("_", " ")
        why = f": {after.course.reason}" if after.course.reason else ""
        yield Change(
            "state",
            f"{said}{why}",
            {"state": after.state.value, "reason": after.course.reason},
        )


def document(seen: Outlook) -> dict[str, Any]:
    """All of it, as JSON has it."""
    rollout, course = seen.rollout, seen.course
    return {
        "generation": rollout.generation,
        "model": rollout.model,
        "version": rollout.version,
        "state": course.state.value,
        "reason": course.reason,
        "started_at_ms": rollout.started_at_ms,
        "since_ms": course.since_ms,
        "by": rollout.by,
        "targets": None if rollout.targets is None else sorted(rollout.targets),
        "where": rollout.query,
        "way_back": None if rollout.way_back is None else rollout.way_back.version,
        "wave": course.wave + 1,
        "eligible": seen.eligible,
        "away": seen.away,
        "excluded": dict(seen.excluded),
        "waves": [
            {
                "wave": each.index + 1,
                "reach": each.reach,
                "total": each.total,
                "agents": each.agents,
                "updated": each.updated,
                "failed": each.failed,
                "moving": each.moving,
                "state": each.state.value,
                "soaks_for_s": each.left_s,
                "shadow": each.shadow,
                "approve": each.approve,
            }
            for each in seen.waves
        ],
        "gates": [_verdict(each) for each in course.verdicts],
        "agents": [
            {
                "agent": each.agent,
                "wave": each.wave + 1,
                "state": each.state.value,
                "version": each.version,
                "reason": each.reason,
                "last_report_age_s": None
                if each.last_seen_ms is None
                else max(0, seen.now_ms - each.last_seen_ms) / 1000,
            }
            for each in seen.agents
        ],
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    return {
        "gate": verdict.kind.value,
        "decision": verdict.decision.value,
        "value": verdict.value,
        "low": verdict.low,
        "high": verdict.high,
        "sample": verdict.sample,
        "reason": verdict.reason,
    }


def _gate_changes(before: Outlook, after: Outlook) -> Iterator[Change]:
    was = {each.kind: each.decision for each in before.course.verdicts}
    for each in after.course.verdicts:
        # Not yet known and not yet sure are the same to who waits.
        if was.get(each.kind, Decision.INCONCLUSIVE) is each.decision:
            continue
        said = "not sure" if each.decision is Decision.INCONCLUSIVE else each.decision
        yield Change(
            "gate", f"gate {each.kind.value}: {said}, {each.reason}", _verdict(each)
        )


def _counts(seen: Outlook) -> dict[str, int]:
    return {
        "told": len(seen.agents),
        "updated": seen.updated,
        "moving": seen.count(*MOVING),
        "shadow": seen.count(AgentState.SHADOW),
        "failed": len(seen.failed),
        "going_back": seen.count(AgentState.GOING_BACK),
        "back": seen.count(AgentState.BACK),
    }


def _counted(seen: Outlook) -> str:
    counts = _counts(seen)
    words = [
        f"{number} {name.replace('_', ' ')}"
        for name, number in counts.items()
        if number and name not in {"told", "updated"}
    ]
    if seen.state in GONE_BACK:
        return ", ".join([f"of {counts['told']} agents", *words]).replace(",", "", 1)
    return ", ".join([f"{counts['updated']} of {seen.eligible} agents updated", *words])


def _why(state: AgentState) -> str:
    match state:
        case AgentState.SILENT:
            return "not heard of within its lease"
        case AgentState.STUCK:
            return "did not move within its lease"
        case _:
            return "no reason given"


def _agent(
    rollout: Rollout,
    course: Course,
    devices: Mapping[str, Device],
    now: Now,
    agent: str,
) -> AgentLine:
    told, device = course.told[agent], devices.get(agent)
    # What has ended stays as it ended: nobody is waited for any more.
    state = standing(rollout, told, device, now) if course.state in LIVE else told.state
    return AgentLine(
        agent,
        told.wave,
        state,
        told.version,
        told.reason or (_why(state) if state in {"silent", "stuck"} else None),
        None if device is None else device.last_seen_ms,
        told.shadow,
    )


def _waves(
    rollout: Rollout,
    course: Course,
    agents: tuple[AgentLine, ...],
    population: int,
    now: Now,
) -> Iterator[WaveLine]:
    before = 0
    for index in range(MAX_WAVES):
        wave = wave_of(rollout, index)
        own = [each for each in agents if each.wave == index]
        total = cut(rollout, index, population)
        if index < course.wave:
            total = before + len(own) if not wave.shadow else len(own)
        total = max(total, before) if not wave.shadow else total
        state, left_s = _state(rollout, course, index, now)
        good = {AgentState.UPDATED, *([AgentState.SHADOW] if wave.shadow else [])}
        yield WaveLine(
            index,
            reach(wave) if rollout.rate is None or wave.shadow else str(total),
            total,
            max(len(own), total - (0 if wave.shadow else before)),
            sum(each.state in good for each in own),
            sum(each.state in FAILED_AGENT for each in own),
            sum(each.state in MOVING | BACK for each in own),
            state,
            left_s,
            wave.shadow,
            wave.approve,
        )
        before = 0 if wave.shadow else total
        if index >= course.wave and (
            is_last(rollout, index, population) or course.state not in LIVE
        ):
            return


def _state(
    rollout: Rollout, course: Course, index: int, now: Now
) -> tuple[WaveState, float]:
    """Where a wave is, and for how many seconds it still soaks."""
    if index != course.wave:
        return (WaveState.PASSED if index < course.wave else WaveState.TO_COME), 0.0
    match course.state:
        case RolloutState.DONE | RolloutState.FAILED:
            return WaveState.PASSED, 0.0
        case RolloutState.PAUSED:
            return WaveState.PAUSED, 0.0
        case RolloutState.AWAITING_APPROVAL:
            return WaveState.APPROVAL, 0.0
        case RolloutState.RUNNING:
            pass
        case _:
            return WaveState.STOPPED, 0.0
    if course.settled_at_ms is None:
        return WaveState.MOVING, 0.0
    soaked_s = (now.now_ms - course.settled_at_ms) / 1000
    left_s = wave_of(rollout, index).soak_s - soaked_s
    return (WaveState.SOAKING, left_s) if left_s > 0 else (WaveState.UNSURE, 0.0)
