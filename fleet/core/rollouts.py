"""Which version an agent should serve, and how far a rollout has come.

For each model the rollout of the newest generation that targets an agent wins.
Progress is read from what agents report; nothing is remembered between two calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from broker.messages import DesiredModel, SlotReport
from fleet.core.devices import Device


class AgentState(StrEnum):
    """How far one agent has come in one rollout."""

    PENDING = "pending"
    PULLING = "pulling"
    TESTING = "testing"
    UPDATED = "updated"
    REFUSED = "refused"
    SILENT = "silent"
    SUPERSEDED = "superseded"


class RolloutState(StrEnum):
    """How far a rollout has come in all."""

    IN_PROGRESS = "in_progress"
    DONE = "done"
    FAILED = "failed"
    SUPERSEDED = "superseded"


@dataclass(frozen=True, slots=True)
class Rollout:
    """A version on its way; `targets` None means every agent, also later ones."""

    generation: int
    model: str
    version: str
    started_at_ms: int
    targets: frozenset[str] | None = None

    def reaches(self, agent: str) -> bool:
        """Whether the agent is among its targets."""
        return self.targets is None or agent in self.targets

    def buries(self, older: Rollout) -> bool:
        """Whether no agent, known or not yet, can still follow `older`."""
        if self.model != older.model or self.generation <= older.generation:
            return False
        if self.targets is None or older.targets is None:
            return self.targets is None
        return self.targets >= older.targets


@dataclass(frozen=True, slots=True)
class AgentProgress:
    """One agent's part in a rollout; `version` is what it serves now."""

    agent: str
    state: AgentState
    version: str | None = None
    reason: str | None = None
    last_seen_ms: int | None = None


@dataclass(frozen=True, slots=True)
class RolloutProgress:
    """A rollout, its state and that of each of its agents, by name."""

    rollout: Rollout
    state: RolloutState
    agents: tuple[AgentProgress, ...]

    def count(self, *states: AgentState) -> int:
        """How many agents are in one of `states`."""
        return sum(each.state in states for each in self.agents)


# What an agent says of a slot that works on this rollout's generation but does not
# serve its version yet.
UNDER_WAY: Final[Mapping[str, AgentState]] = {
    "idle": AgentState.PENDING,
    "pulling": AgentState.PULLING,
    "testing": AgentState.TESTING,
    # Swapped, and serving something else by now: it will try again.
    "swapped": AgentState.PENDING,
    "refused": AgentState.REFUSED,
}
# An agent that lies must not use up the generations.
MOST_BELIEVED: Final = 2**53
MOVING: Final = (AgentState.PENDING, AgentState.PULLING, AgentState.TESTING)


def desired_for(agent: str, rollouts: Sequence[Rollout]) -> tuple[DesiredModel, ...]:
    """All that an agent should serve, by model."""
    newest: dict[str, Rollout] = {}
    for each in sorted(rollouts, key=lambda rollout: rollout.generation):
        if each.reaches(agent):
            newest[each.model] = each
    return tuple(
        DesiredModel(model=each.model, version=each.version, generation=each.generation)
        for _, each in sorted(newest.items())
    )


def next_generation(rollouts: Sequence[Rollout], devices: Iterable[Device]) -> int:
    """The generation of a new rollout: above every one that agents may hold to.

    Agents ignore what is older than their own. After the fleet's state was lost, they
    still have generations that no rollout here is known of.
    """
    reported = (slot.generation for device in devices for slot in device.slots)
    believed = (each for each in reported if each <= MOST_BELIEVED)
    return 1 + max((0, *(each.generation for each in rollouts), *believed))


def progress(
    rollout: Rollout,
    rollouts: Sequence[Rollout],
    devices: Mapping[str, Device],
    *,
    now_ms: int,
    silent_after_s: float,
) -> RolloutProgress:
    """How far a rollout has come.

    Args:
        rollout: the one asked about.
        rollouts: all there are, in any order.
        devices: every known agent, by name.
        now_ms: Unix time of the fleet's clock.
        silent_after_s: an agent that still has to move but was not heard of for so
            long is silent.
    """
    agents = sorted(devices if rollout.targets is None else rollout.targets)
    newer = [
        other
        for other in rollouts
        if other.model == rollout.model and other.generation > rollout.generation
    ]
    each = tuple(
        _agent_progress(
            rollout,
            agent,
            devices.get(agent),
            superseded=any(other.reaches(agent) for other in newer),
            silent_before_ms=now_ms - silent_after_s * 1000,
        )
        for agent in agents
    )
    return RolloutProgress(rollout, _overall(each, newer=bool(newer)), each)


def current(
    rollouts: Sequence[Rollout],
    devices: Mapping[str, Device],
    *,
    now_ms: int,
    silent_after_s: float,
) -> list[RolloutProgress]:
    """The progress of every rollout that some agent still follows, newest first."""
    every = [
        progress(each, rollouts, devices, now_ms=now_ms, silent_after_s=silent_after_s)
        for each in unburied(rollouts)
    ]
    return [each for each in every if each.state is not RolloutState.SUPERSEDED]


def unburied(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """Those that no single newer one has taken every target from, newest first."""
    left: list[Rollout] = []
    for each in sorted(rollouts, key=lambda rollout: rollout.generation, reverse=True):
        if not any(newer.buries(each) for newer in left):
            left.append(each)
    return left


def _agent_progress(
    rollout: Rollout,
    agent: str,
    device: Device | None,
    *,
    superseded: bool,
    silent_before_ms: float,
) -> AgentProgress:
    slot = device.slot(rollout.model) if device is not None else None
    state = AgentState.SUPERSEDED if superseded else _state(rollout, slot)
    seen = device.last_seen_ms if device is not None else None
    if state in MOVING and seen is not None and seen < silent_before_ms:
        state = AgentState.SILENT
    return AgentProgress(
        agent=agent,
        state=state,
        version=slot.active if slot is not None else None,
        reason=slot.reason if slot is not None and state in _TELLING else None,
        last_seen_ms=seen,
    )


_TELLING: Final = (*MOVING, AgentState.REFUSED)


def _state(rollout: Rollout, slot: SlotReport | None) -> AgentState:
    if slot is None:
        return AgentState.PENDING
    if slot.generation < rollout.generation:
        # It speaks of an earlier rollout: it has not heard of this one yet, even if
        # it serves the same version for another reason and may be about to leave it.
        return AgentState.PENDING
    if slot.active == rollout.version:
        return AgentState.UPDATED
    return UNDER_WAY[slot.state]


def _overall(agents: Sequence[AgentProgress], *, newer: bool) -> RolloutState:
    states = {each.state for each in agents} - {AgentState.SUPERSEDED}
    if not states:
        return RolloutState.SUPERSEDED if newer else RolloutState.IN_PROGRESS
    if states == {AgentState.UPDATED}:
        return RolloutState.DONE
    if AgentState.REFUSED in states and states.isdisjoint(MOVING):
        return RolloutState.FAILED
    return RolloutState.IN_PROGRESS
