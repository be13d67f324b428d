"""How far one told agent has come, from what it last reported and from the time.

What is remembered (`Told.state`) only rises, so that a report that comes twice or too
late changes nothing. What silence makes of it (`standing`) is worked out at each look.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from broker.messages import SlotReport
from fleet.core.devices import Device
from fleet.core.rollouts import AgentState, Rollout, Told

S = AgentState

# What an agent says of a slot that works on this rollout's generation but does not
# serve its version.
UNDER_WAY: Final[Mapping[str, AgentState]] = {
    "idle": S.PENDING,
    "waiting": S.WAITING,
    "pulling": S.PULLING,
    "testing": S.TESTING,
    "shadow": S.SHADOW,
    # Of some other version: it will try this one again.
    "probation": S.PENDING,
    "swapped": S.PENDING,
    "returned": S.RETURNED,
    "refused": S.REFUSED,
}
RANK: Final = {
    S.PENDING: 0,
    S.WAITING: 1,
    S.PULLING: 2,
    S.TESTING: 3,
    S.REFUSED: 4,
    S.SHADOW: 5,
    S.PROBATION: 6,
    S.RETURNED: 7,
    # Above: an agent never returns from what it has committed, but one that lost its
    # disk tries anew, and may keep what it had returned from.
    S.UPDATED: 8,
    S.GOING_BACK: 9,
    S.BACK: 10,
}
# From here on an agent does not fall back: an agent that restarts may pull again, but
# one that has refused or swapped has answered.
ANSWERED: Final = RANK[S.REFUSED]


@dataclass(frozen=True, slots=True)
class Now:
    """The time, and since when reports have been coming in without a break.

    While nobody at all is heard (RabbitMQ or the fleet itself was away), no agent's
    lease runs: `listening_since_ms` is when that ended. All is Unix time of the fleet's
    clock.
    """

    now_ms: int
    listening_since_ms: int = 0
    silent_after_s: float = 90.0

    @property
    def long_enough(self) -> bool:
        """Whether reports have come in for so long that who is not heard is away."""
        listened_ms = self.now_ms - self.listening_since_ms
        return listened_ms >= self.silent_after_s * 1000

    def heard(self, device: Device | None) -> bool:
        """Whether the agent is there now, as far as one can know."""
        return device is not None and not device.silent(
            self.now_ms, self.silent_after_s
        )


def follow(rollout: Rollout, told: Told, device: Device | None) -> Told:
    """The agent after its last report."""
    slot = None if device is None else device.slot(rollout.model)
    if device is None or slot is None:
        return told
    wanted = rollout.generation if told.shadow else rollout.deploy_generation
    if slot.generation < wanted:
        # It speaks of an earlier rollout: it has not heard of this one yet, even if
        # it serves the same version for another reason and may be about to leave it.
        return told
    state = _reported(rollout, told, slot)
    if state is None or (RANK[state] < RANK[told.state] and _final(told.state)):
        return told
    mark = slot.pulled_bytes if state is S.PULLING else 0
    moved = RANK[state] > RANK[told.state] or (
        state is told.state is S.PULLING and mark > told.mark
    )
    reason = slot.reason if state not in {S.UPDATED, S.SHADOW} else None
    if (state, slot.active, reason) == (told.state, told.version, told.reason) and (
        not moved
    ):
        return told
    return replace(
        told,
        state=state,
        version=slot.active,
        reason=reason,
        mark=max(mark, told.mark) if state is told.state else mark,
        since_ms=max(told.since_ms, device.last_seen_ms) if moved else told.since_ms,
    )


def follow_back(rollout: Rollout, told: Told, device: Device | None) -> Told:
    """The same while the rollout goes back."""
    slot = None if device is None else device.slot(rollout.model)
    if told.state is S.BACK or device is None or slot is None:
        return told
    back = told.before if told.shadow else rollout.way_back and rollout.way_back.version
    heard = slot.generation >= rollout.back_generation
    if not heard or (
        slot.active != back or slot.state in {"pulling", "testing", "shadow"}
    ):
        # Why it refused the version is no reason not to go back from it.
        reason = slot.reason if heard and slot.state == "refused" else None
        if (slot.active, reason) == (told.version, told.reason):
            return told
        return replace(told, version=slot.active, reason=reason)
    return replace(
        told,
        state=S.BACK,
        version=slot.active,
        since_ms=max(told.since_ms, device.last_seen_ms),
    )


def standing(
    rollout: Rollout, told: Told, device: Device | None, now: Now
) -> AgentState:
    """What its state comes to at this moment: silence and standing still are failures."""
    if told.state in {S.UPDATED, S.REFUSED, S.RETURNED, S.BACK}:
        return told.state
    lease_s = rollout.lease_s
    if told.state is S.PROBATION:
        lease_s += rollout.policy.probation_s
    since_ms = max(told.since_ms, now.listening_since_ms)
    if told.state is S.SHADOW and device is not None:
        since_ms = max(since_ms, device.last_seen_ms)
    if now.now_ms - since_ms <= lease_s * 1000:
        return told.state
    if not now.heard(device):
        return S.SILENT
    # Put off for a reason, or served too few requests to be sure: nobody's failure.
    return S.LATE if told.state in {S.WAITING, S.PROBATION, S.SHADOW} else S.STUCK


def _reported(rollout: Rollout, told: Told, slot: SlotReport) -> AgentState | None:
    if not told.shadow and slot.active == rollout.version:
        return S.PROBATION if slot.state == "probation" else S.UPDATED
    newer = slot.generation > rollout.deploy_generation
    if newer:
        return None  # It follows a newer rollout now: what it says is of that one.
    if told.shadow and slot.active == rollout.version:
        return S.SHADOW
    state = UNDER_WAY[slot.state]
    if state is S.SHADOW and not told.shadow:
        return S.PENDING
    return state


def _final(state: AgentState) -> bool:
    return RANK[state] >= ANSWERED
