"""A rollout as values: what was ordered, how far it is, and what each agent should serve.

For each model the newest rollout that has *told* an agent decides what it should
serve, so an agent's generations only rise: a rollout reserves one for its shadow, one
for its version and one for the way back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from broker.messages import DesiredModel, UpdatePolicy
from fleet.core.devices import Device
from fleet.core.gates import Gate, GateKind, Verdict

DEFAULT_MAX_PARALLEL: Final = 100
DEFAULT_LEASE_S: Final = 600.0
DEFAULT_PATIENCE_S: Final = 24 * 3600.0
# An agent that lies must not use up the generations.
MOST_BELIEVED: Final = 2**53


class AgentState(StrEnum):
    """How far one agent has come in one rollout."""

    QUEUED = "queued"
    EXCLUDED = "excluded"
    PENDING = "pending"
    WAITING = "waiting"
    PULLING = "pulling"
    TESTING = "testing"
    SHADOW = "shadow"
    PROBATION = "probation"
    UPDATED = "updated"
    REFUSED = "refused"
    RETURNED = "returned"
    STUCK = "stuck"
    SILENT = "silent"
    LATE = "late"
    GOING_BACK = "going_back"
    BACK = "back"
    SUPERSEDED = "superseded"


# It may use the network for its update: at most `max_parallel` are at once.
PULLS: Final = frozenset(
    {
        AgentState.PENDING,
        AgentState.WAITING,
        AgentState.PULLING,
        AgentState.TESTING,
    }
)
# The wave waits for it, for as long as its lease.
MOVING: Final = PULLS | {AgentState.PROBATION}
SUCCEEDED: Final = frozenset({AgentState.UPDATED, AgentState.SHADOW})
FAILED_AGENT: Final = frozenset(
    {
        AgentState.REFUSED,
        AgentState.RETURNED,
        AgentState.STUCK,
        AgentState.SILENT,
    }
)


# What a record may hold; the others are made of these and of the time at each look.
REMEMBERED: Final = frozenset(
    {
        AgentState.PENDING,
        AgentState.WAITING,
        AgentState.PULLING,
        AgentState.TESTING,
        AgentState.REFUSED,
        AgentState.SHADOW,
        AgentState.PROBATION,
        AgentState.UPDATED,
        AgentState.RETURNED,
        AgentState.GOING_BACK,
        AgentState.BACK,
    }
)


class RolloutState(StrEnum):
    """How far a rollout has come in all; what follows what is `machine.NEXT`."""

    RUNNING = "running"
    AWAITING_APPROVAL = "awaiting_approval"
    PAUSED = "paused"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"
    DONE = "done"
    FAILED = "failed"
    ABORTED = "aborted"
    SUPERSEDED = "superseded"


LIVE: Final = frozenset(
    {
        RolloutState.RUNNING,
        RolloutState.AWAITING_APPROVAL,
        RolloutState.PAUSED,
        RolloutState.ROLLING_BACK,
    }
)
RETURNING: Final = frozenset({AgentState.GOING_BACK, AgentState.BACK})
GONE_BACK: Final = frozenset({RolloutState.ROLLING_BACK, RolloutState.ROLLED_BACK})


class OnFailure(StrEnum):
    """What a failed gate does by itself."""

    ROLL_BACK = "roll_back"
    PAUSE = "pause"


@dataclass(frozen=True, slots=True)
class Wave:
    """How far the version may be spread before the next gate.

    Attributes:
        count: so many agents in all, those of earlier waves included; or
        share: this share of the eligible, rounded up; neither means all.
        soak_s: how long to watch after the last agent of the wave has settled.
        approve: whether a person must agree before the next wave.
        shadow: the candidate only runs beside the active version.
    """

    count: int | None = None
    share: float | None = None
    soak_s: float = 0.0
    approve: bool = False
    shadow: bool = False


@dataclass(frozen=True, slots=True)
class Rate:
    """Waves that grow: `base` agents, then `factor` times as many more each time."""

    base: int
    factor: float = 2.0
    soak_s: float = 0.0
    approve: bool = False


@dataclass(frozen=True, slots=True)
class WayBack:
    """The version of before, in the epoch that was signed for going back to it."""

    version: str
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Rollout:
    """A version on its way, as it was ordered. Never changes.

    Attributes:
        generation: its name and the generation of its first desired documents.
        model: which model.
        version: which version of it.
        started_at_ms: Unix time of the fleet's clock.
        targets: None means every agent, also later ones.
        query: of those, the agents that a label query matches (`fleet.core.labels`).
        epoch: the seal's.
        way_back: None when there is nothing to go back to.
        waves: in order; the last is followed by one of all if it is not that itself.
        rate: in place of `waves`, after a shadow wave if that is the first of them.
        gates: what every wave is judged by.
        policy: how agents carry the update out.
        max_parallel: how many agents may be between told and settled.
        lease_s: how long an agent may stay in one step without moving.
        patience_s: how long after its soak time a wave may be inconclusive.
        on_failure: what a failed gate does.
        seed: of the order of agents; 0 means the generation.
        by: who ordered it.
    """

    generation: int
    model: str
    version: str
    started_at_ms: int
    targets: frozenset[str] | None = None
    query: str | None = None
    epoch: int = 0
    way_back: WayBack | None = None
    waves: tuple[Wave, ...] = (Wave(),)
    rate: Rate | None = None
    gates: tuple[Gate, ...] = ()
    policy: UpdatePolicy = field(default_factory=UpdatePolicy)
    max_parallel: int = DEFAULT_MAX_PARALLEL
    lease_s: float = DEFAULT_LEASE_S
    patience_s: float = DEFAULT_PATIENCE_S
    on_failure: OnFailure = OnFailure.ROLL_BACK
    seed: int = 0
    by: str = ""

    @property
    def shadows(self) -> bool:
        """Whether the candidate first only runs beside the active version."""
        return bool(self.waves) and self.waves[0].shadow

    @property
    def deploy_generation(self) -> int:
        """That of the documents in which the version is to serve."""
        return self.generation + self.shadows

    @property
    def back_generation(self) -> int:
        """That of the documents in which agents are to go back."""
        return self.deploy_generation + 1

    @property
    def last_generation(self) -> int:
        """The greatest that may stand in a document of this rollout."""
        plain = self.way_back is None and not self.shadows
        return self.generation if plain else self.back_generation

    def names(self, agent: str) -> bool:
        """Whether the agent is among its targets; the query is asked elsewhere."""
        return self.targets is None or agent in self.targets

    def buries(self, older: Rollout) -> bool:
        """Whether no agent, known or not yet, can still follow `older`."""
        if self.model != older.model or self.generation <= older.generation:
            return False
        if self.query is not None:
            return self.query == older.query and self._covers(older)
        return self._covers(older)

    def _covers(self, older: Rollout) -> bool:
        if self.targets is None or older.targets is None:
            return self.targets is None
        return self.targets >= older.targets


@dataclass(frozen=True, slots=True)
class Told:
    """One agent that a rollout has told, and what came of it.

    Attributes:
        agent: its name.
        wave: in which it was told, from 0 on.
        told_at_ms: when.
        state: how far it has come.
        since_ms: when it last moved: its lease runs from here.
        mark: how far it was then within its state (bytes pulled).
        version: what it serves now.
        reason: why it refused, returned or waits.
        shadow: told only to run the candidate beside.
        before: the version that it served when it was told, and
        before_epoch: the epoch of that.
    """

    agent: str
    wave: int
    told_at_ms: int
    state: AgentState = AgentState.PENDING
    since_ms: int = 0
    mark: int = 0
    version: str | None = None
    reason: str | None = None
    shadow: bool = False
    before: str | None = None
    before_epoch: int = 0


@dataclass(frozen=True, slots=True)
class Course:
    """How far a rollout is. All there is to remember of it besides the order.

    Attributes:
        state: see `machine.NEXT`.
        since_ms: since when.
        wave: the one on its way or just ended, from 0 on.
        wave_since_ms: when it began.
        settled_at_ms: when its last agent settled: the soak time runs from here.
        reason: why it is in this state, one sentence.
        approved: the last wave after which a person agreed to go on.
        waived: failed gates that a person has overruled, by resuming.
        verdicts: what the gates said at the last look.
        told: every agent that was told, by name.
    """

    state: RolloutState = RolloutState.RUNNING
    since_ms: int = 0
    wave: int = 0
    wave_since_ms: int = 0
    settled_at_ms: int | None = None
    reason: str | None = None
    approved: int = -1
    waived: frozenset[GateKind] = frozenset()
    verdicts: tuple[Verdict, ...] = ()
    told: Mapping[str, Told] = field(default_factory=dict)

    def count(self, *states: AgentState) -> int:
        """How many told agents are in one of `states`."""
        return sum(each.state in states for each in self.told.values())


def begun(rollout: Rollout) -> Course:
    """The course of a rollout that has told nobody yet."""
    at = rollout.started_at_ms
    return Course(since_ms=at, wave_since_ms=at)


def desired_of(rollout: Rollout, course: Course, agent: str) -> DesiredModel | None:
    """What a rollout wants of an agent; None when it has not told it."""
    told = course.told.get(agent)
    if told is None:
        return None
    # Also when a newer rollout has superseded one that was going back.
    gone_back = course.state in GONE_BACK or told.state in RETURNING
    if gone_back or (told.shadow and course.state not in LIVE):
        if told.shadow:
            back = (
                None if told.before is None else WayBack(told.before, told.before_epoch)
            )
        else:
            back = rollout.way_back
        if back is not None:
            return DesiredModel(
                model=rollout.model,
                version=back.version,
                epoch=back.epoch,
                generation=rollout.back_generation,
            )
        if told.shadow:
            return None
    return DesiredModel(
        model=rollout.model,
        version=rollout.version,
        epoch=rollout.epoch,
        generation=rollout.generation if told.shadow else rollout.deploy_generation,
        shadow=told.shadow,
        policy=rollout.policy,
    )


def desired_for(
    agent: str, rollouts: Iterable[tuple[Rollout, Course]]
) -> tuple[DesiredModel, ...]:
    """All that an agent should serve, by model."""
    newest: dict[str, DesiredModel] = {}
    for rollout, course in rollouts:
        wanted = desired_of(rollout, course, agent)
        held = newest.get(rollout.model)
        if wanted is not None and (held is None or held.generation < wanted.generation):
            newest[rollout.model] = wanted
    return tuple(newest[model] for model in sorted(newest))


def next_generation(rollouts: Iterable[Rollout], devices: Iterable[Device]) -> int:
    """The generation of a new rollout: above every one that agents may hold to.

    Agents ignore what is older than their own. After the fleet's state was lost, they
    still have generations that no rollout here is known of.
    """
    reported = (slot.generation for device in devices for slot in device.slots)
    believed = (each for each in reported if each <= MOST_BELIEVED)
    return 1 + max((0, *(each.last_generation for each in rollouts), *believed))
