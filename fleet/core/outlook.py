"""A rollout as a person looks at it: its waves, its gates, and the agents that failed.

Everything is counted from the order, the course and what is known of the fleet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from fleet.core.cohorts import cut, is_last, wave_of
from fleet.core.differences import reach
from fleet.core.gates import Verdict
from fleet.core.progress import AgentProgress, RolloutProgress
from fleet.core.rollouts import (
    FAILED_AGENT,
    GONE_BACK,
    MOVING,
    AgentState,
    Course,
    Rollout,
    RolloutState,
)

MAX_WAVES: Final = 100
# Agents report far more often: when none was heard for so long, nobody listens.
QUIET_S: Final = 120.0
BACK: Final = frozenset({AgentState.BACK, AgentState.GOING_BACK})
UNREACHED: Final = frozenset({AgentState.EXCLUDED, AgentState.SUPERSEDED})
WORDS: Final = {"moving": "on their way", "going_back": "going back"}


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


STOOD: Final = {
    RolloutState.DONE: WaveState.PASSED,
    RolloutState.FAILED: WaveState.PASSED,
    RolloutState.PAUSED: WaveState.PAUSED,
    RolloutState.AWAITING_APPROVAL: WaveState.APPROVAL,
}


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
        progress: the rollout, its course and its agents.
        waves: those begun and those to come.
        now_ms: when this was.
    """

    progress: RolloutProgress
    waves: tuple[WaveLine, ...]
    now_ms: int

    @property
    def rollout(self) -> Rollout:
        """As it was ordered."""
        return self.progress.rollout

    @property
    def course(self) -> Course:
        """How far it is."""
        return self.progress.course

    @property
    def state(self) -> RolloutState:
        """That of the rollout."""
        return self.progress.state

    @property
    def ended(self) -> bool:
        """Whether nothing more happens that a person would wait for."""
        return not self.progress.live

    @property
    def told(self) -> tuple[AgentProgress, ...]:
        """Those that were told and that no newer rollout has taken."""
        return tuple(
            each
            for each in self.progress.agents
            if each.wave is not None and each.state is not AgentState.SUPERSEDED
        )

    @property
    def population(self) -> int:
        """How many agents it may reach."""
        return sum(each.state not in UNREACHED for each in self.progress.agents)

    @property
    def away(self) -> int:
        """How many were not told because they are not there."""
        return sum(
            each.wave is None and each.state is AgentState.SILENT
            for each in self.progress.agents
        )

    @property
    def excluded(self) -> dict[str, str]:
        """Why agents may not be told, by name."""
        return {
            each.agent: each.reason or ""
            for each in self.progress.agents
            if each.state is AgentState.EXCLUDED
        }

    @property
    def quiet_s(self) -> float | None:
        """For how long no agent at all was heard, when that is too long."""
        seen_ms = [each.last_seen_ms or 0 for each in self.progress.agents]
        quiet_s = (self.now_ms - max(seen_ms, default=self.now_ms)) / 1000
        return quiet_s if quiet_s > QUIET_S and not self.ended else None

    @property
    def failed(self) -> tuple[AgentProgress, ...]:
        """The told agents that failed, the latest wave first."""
        bad = [each for each in self.told if each.state in FAILED_AGENT]
        return tuple(sorted(bad, key=lambda each: (-(each.wave or 0), each.agent)))

    def count(self, *states: AgentState) -> int:
        """How many told agents are in one of `states`."""
        return sum(each.state in states for each in self.told)


def outlook(progress: RolloutProgress, now_ms: int) -> Outlook:
    """The rollout as it stands at this moment of the fleet's clock."""
    bare = Outlook(progress, (), now_ms)
    return replace(bare, waves=tuple(_waves(bare)))


def why(agent: AgentProgress) -> str:
    """Why an agent failed or waits, for people."""
    if agent.reason:
        return agent.reason
    match agent.state:
        case AgentState.SILENT:
            return "not heard of within its lease"
        case AgentState.STUCK:
            return "did not move within its lease"
        case _:
            return "no reason given"


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
        "waves": [_wave(each) for each in seen.waves],
        "gates": [verdict_document(each) for each in course.verdicts],
        "agents": [
            {
                "agent": each.agent,
                "state": each.state.value,
                "version": each.version,
                "reason": each.reason,
                "wave": None if each.wave is None else each.wave + 1,
                "last_report_age_s": None
                if each.last_seen_ms is None
                else max(0, seen.now_ms - each.last_seen_ms) / 1000,
            }
            for each in seen.progress.agents
        ],
    }


def _wave(wave: WaveLine) -> dict[str, Any]:
    return {
        "wave": wave.index + 1,
        "reach": wave.reach,
        "total": wave.total,
        "agents": wave.agents,
        "updated": wave.updated,
        "failed": wave.failed,
        "moving": wave.moving,
        "state": wave.state.value,
        "soaks_for_s": wave.left_s,
        "shadow": wave.shadow,
        "approve": wave.approve,
    }


def verdict_document(verdict: Verdict) -> dict[str, Any]:
    """What a gate says, as JSON has it."""
    return {
        "gate": verdict.kind.value,
        "decision": verdict.decision.value,
        "value": verdict.value,
        "low": verdict.low,
        "high": verdict.high,
        "sample": verdict.sample,
        "reason": verdict.reason,
    }


def counts_of(seen: Outlook) -> dict[str, int]:
    """How many told agents are where."""
    return {
        "told": len(seen.told),
        "updated": seen.count(AgentState.UPDATED),
        "moving": seen.count(*MOVING),
        "shadow": seen.count(AgentState.SHADOW),
        "late": seen.count(AgentState.LATE),
        "failed": len(seen.failed),
        "going_back": seen.count(AgentState.GOING_BACK),
        "back": seen.count(AgentState.BACK),
    }


def counted(seen: Outlook) -> str:
    """How many agents are where, in one line."""
    counts = counts_of(seen)
    words = [
        f"{number} {WORDS.get(name, name)}"
        for name, number in counts.items()
        if number and name not in {"told", "updated"}
    ]
    of, what = (
        seen.population,
        f"{counts['updated']} of {seen.population} agents updated",
    )
    if seen.state in GONE_BACK:
        of, what = counts["told"], f"{counts['told']} agents were told"
    left = of - counts["told"] - seen.away
    words += [f"{left} to come"] if left > 0 and not seen.ended else []
    words += [f"{seen.away} away"] if seen.away else []
    return ", ".join([what, *words])


def _waves(seen: Outlook) -> Iterator[WaveLine]:
    rollout, course, population = seen.rollout, seen.course, seen.population
    reached = 0
    for index in range(MAX_WAVES):
        wave = wave_of(rollout, index)
        states = [each.state for each in seen.told if each.wave == index]
        before = 0 if wave.shadow else reached
        total = max(before + len(states), cut(rollout, index, population))
        if index < course.wave or seen.ended:
            total = before + len(states)
        good = {AgentState.UPDATED, *([AgentState.SHADOW] if wave.shadow else [])}
        state, left_s = _state(seen, index)
        yield WaveLine(
            index,
            reach(wave) if rollout.rate is None or wave.shadow else str(total),
            total,
            total - before,
            sum(each in good for each in states),
            sum(each in FAILED_AGENT for each in states),
            sum(each in MOVING | BACK for each in states),
            state,
            left_s,
            wave.shadow,
            wave.approve,
        )
        reached = before if wave.shadow else total
        last = seen.ended or is_last(rollout, index, population)
        if index >= course.wave and last:
            return


def _state(seen: Outlook, index: int) -> tuple[WaveState, float]:
    """Where a wave is, and for how many seconds it still soaks."""
    course = seen.course
    if index != course.wave:
        return (WaveState.PASSED if index < course.wave else WaveState.TO_COME), 0.0
    if course.state is not RolloutState.RUNNING:
        return STOOD.get(course.state, WaveState.STOPPED), 0.0
    if course.settled_at_ms is None:
        return WaveState.MOVING, 0.0
    soaked_s = max(0, seen.now_ms - course.settled_at_ms) / 1000
    left_s = wave_of(seen.rollout, index).soak_s - soaked_s
    return (WaveState.SOAKING, left_s) if left_s > 0 else (WaveState.UNSURE, 0.0)
