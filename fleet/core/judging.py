"""What the gates say of the agents that a rollout has told so far.

All agents that were told count, those of earlier waves too, so there is one bet against
each gate in a rollout and not one a wave. Agents that are still on their way count as
well for what would fail a gate, and as nothing for what would pass it: those that fail
fail quickly, and the first to answer are not like the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from broker.messages import HealthReport, SlotReport
from fleet.core.devices import Device
from fleet.core.gates import SLOWER, Decision, Gate, GateKind, Verdict
from fleet.core.intervals import (
    Count,
    Estimate,
    Pair,
    difference,
    pooled,
    share,
    surely_above,
)
from fleet.core.rollouts import (
    FAILED_AGENT,
    MOVING,
    SUCCEEDED,
    AgentState,
    Rollout,
    Told,
)

# What is spilled for being hard is not a fair sample, and less of it may be well.
BIASED: Final = 3.0
# An agent of whose requests surely more than this fail is broken.
BREAKDOWN: Final = 0.2
PERCENT: Final = 100


def judge(
    rollout: Rollout,
    states: Mapping[str, AgentState],
    devices: Mapping[str, Device],
    told: Mapping[str, Told],
) -> tuple[Verdict, ...]:
    """What each gate of a rollout says.

    Args:
        rollout: whose gates.
        states: how each told agent stands now; those of newer rollouts left out.
        devices: every known agent.
        told: the record of each told agent.
    """
    if not rollout.gates or not states:
        return ()
    settled = not any(each in MOVING for each in states.values())
    states = dict(states)
    slots = []
    for agent in states:
        slot = _showing(rollout, told[agent], devices.get(agent))
        if slot is None:
            continue
        if _breaks_down(rollout, slot):
            # An agent that fails most of its requests is one failed agent, and not a
            # thousand failed requests: one broken device stops no rollout.
            states[agent] = AgentState.STUCK
        else:
            slots.append(slot)
    wave = max(told[agent].wave for agent in states)
    first = all(told[agent].before is None for agent in states)
    seen = Seen(states, slots, settled, wave, first)
    return tuple(JUDGES[each.kind](each, seen) for each in rollout.gates)


@dataclass(frozen=True, slots=True)
class Seen:
    """What the gates look at.

    Attributes:
        states: how each agent stands.
        slots: what agents say of the rollout's version, broken ones left out.
        settled: whether nobody is on the way any more.
        wave: the last in which one of them was told.
        first: none of them has served any version before.
    """

    states: Mapping[str, AgentState]
    slots: Sequence[SlotReport]
    settled: bool
    wave: int
    first: bool = False


def _showing(rollout: Rollout, told: Told, device: Device | None) -> SlotReport | None:
    """What the agent says, if it speaks of this rollout's version."""
    slot = None if device is None else device.slot(rollout.model)
    if slot is None:
        return None
    if told.shadow:
        shown = slot.state == "shadow" and slot.generation == rollout.generation
    else:
        shown = (
            slot.active == rollout.version
            and slot.generation >= rollout.deploy_generation
        )
    return slot if shown else None


def _breaks_down(rollout: Rollout, slot: SlotReport) -> bool:
    for gate in rollout.gates:
        if gate.kind is GateKind.ERRORS and slot.health is not None:
            errors, requests = slot.health.errors, slot.health.requests
            return requests >= gate.min_sample and surely_above(
                errors, requests, BREAKDOWN, gate.false_alarm
            )
    return False


def _of_success(gate: Gate, seen: Seen) -> Verdict:
    found = _of_agents(gate, seen, FAILED_AGENT, "failed")
    if found.final and {AgentState.RETURNED}.issuperset(seen.states.values()):
        # Each proved by intervals of its own that the version is worse.
        count = len(seen.states)
        reason = f"{count} of {count} agents came back, each by its own probation"
        return replace(found, decision=Decision.FAIL, reason=reason, final=False)
    return found


def _of_silence(gate: Gate, seen: Seen) -> Verdict:
    return _of_agents(gate, seen, frozenset({AgentState.SILENT}), "fell silent")


def _of_agents(
    gate: Gate, seen: Seen, bad: frozenset[AgentState], what: str
) -> Verdict:
    states = list(seen.states.values())
    failed = sum(each in bad for each in states)
    answered = sum(each in FAILED_AGENT | SUCCEEDED for each in states)
    came = share(failed, len(states), gate.false_alarm)
    reason = f"{failed} of {len(states)} agents {what}"
    if came.low > gate.limit and failed >= gate.min_sample:
        return _verdict(gate, Decision.FAIL, came, reason)
    if not seen.settled or not answered:
        return _verdict(gate, Decision.INCONCLUSIVE, came, reason + ", others to come")
    if failed <= gate.limit * answered:
        return _verdict(gate, Decision.PASS, came, reason)
    # All have answered: there is nothing to wait for.
    return replace(_verdict(gate, Decision.INCONCLUSIVE, came, reason), final=True)


def _of_latency(gate: Gate, seen: Seen) -> Verdict:
    slower = list(_slower(seen.slots))
    return _of_votes(gate, slower, "are slower", settled=seen.settled)


def _of_promise(gate: Gate, seen: Seen) -> Verdict:
    broken = list(_broken(seen.slots))
    return _of_votes(gate, broken, "broke theirs", settled=seen.settled)


def _of_votes(
    gate: Gate, votes: Sequence[bool], what: str, *, settled: bool
) -> Verdict:
    came = share(sum(votes), len(votes), gate.false_alarm)
    reason = f"{sum(votes)} of {len(votes)} agents {what}"
    if len(votes) >= gate.min_sample and came.low > gate.limit:
        return _verdict(gate, Decision.FAIL, came, reason)
    if settled and len(votes) >= gate.min_sample and came.value <= gate.limit:
        return _verdict(gate, Decision.PASS, came, reason)
    return _verdict(gate, Decision.INCONCLUSIVE, came, reason)


def _of_errors(gate: Gate, seen: Seen) -> Verdict:
    counts = [Count(each.errors, each.requests) for each in _health(seen.slots)]
    came = pooled(counts, gate.false_alarm, _enough(gate))
    reason = f"{_percent(came)} of {came.sample} requests"
    return _by_interval(gate, seen, came, came, reason)


def _of_spill(gate: Gate, seen: Seen) -> Verdict:
    pairs = _pairs(seen.slots, lambda each: Count(each.spilled, each.requests))
    came = difference(pairs, gate.false_alarm, _enough(gate))
    # Spilling less than before may be overconfidence: both ways are a shift.
    worse = came if came.value >= 0 else _turned(came)
    reason = f"{_by_how_much(came, 'more', 'less')}, over {came.sample} requests"
    return _by_interval(gate, seen, came, worse, reason)


def _of_agreement(gate: Gate, seen: Seen) -> Verdict:
    if seen.first:
        return Verdict(gate.kind, Decision.PASS, 0, reason="no version to compare with")
    # A part of the chance each: either may fail the gate.
    miss = gate.false_alarm / 2
    audited = _drop(
        _pairs(seen.slots, lambda each: Count(each.chosen_agreed, each.chosen)),
        miss,
        _enough(gate),
    )
    fair = _by_interval(
        gate,
        seen,
        audited,
        audited,
        f"{_by_how_much(audited, 'less', 'more')}, over {audited.sample} audits drawn "
        "by chance",
    )
    if fair.decision is not Decision.INCONCLUSIVE:
        return fair
    wider = replace(gate, limit=BIASED * gate.limit, enough=BIASED * _enough(gate))
    compared = _drop(
        _pairs(seen.slots, lambda each: Count(each.agreed, each.compared)),
        miss,
        _enough(wider),
    )
    rough = _by_interval(
        wider,
        seen,
        compared,
        compared,
        f"{_by_how_much(compared, 'less', 'more')}, over {compared.sample} compared, "
        "most of them hard",
    )
    # Hard requests can prove a version bad. That it is good only a fair sample can.
    return rough if rough.decision is Decision.FAIL else fair


def _drop(pairs: Sequence[Pair], miss: float, scale: float) -> Estimate:
    return _turned(difference(pairs, miss, scale))


def _by_interval(
    gate: Gate, seen: Seen, shown: Estimate, worse: Estimate, reason: str
) -> Verdict:
    """Fail when the limit is surely exceeded, pass when it is surely not by much."""
    if worse.sample < max(1, gate.min_sample):
        reason = f"only {worse.sample}, at least {gate.min_sample} are needed"
        return Verdict(gate.kind, Decision.INCONCLUSIVE, worse.sample, reason=reason)
    if worse.low > gate.limit:
        return _verdict(gate, Decision.FAIL, shown, reason)
    if worse.high < gate.asked(seen.wave) and worse.value <= gate.limit:
        return _verdict(gate, Decision.PASS, shown, reason)
    return _verdict(gate, Decision.INCONCLUSIVE, shown, reason)


def _by_how_much(came: Estimate, up: str, down: str) -> str:
    """A difference in words, where `up` is what a positive one is."""
    if came.value < 0:
        return _by_how_much(_turned(came), down, up)
    return f"{_of_hundred(came.value)} % {up} ({_between(came)})"


def _percent(came: Estimate) -> str:
    return f"{_of_hundred(came.value)} % ({_between(came)})"


def _between(came: Estimate) -> str:
    return f"{_of_hundred(came.low)} to {_of_hundred(came.high)} %"


def _of_hundred(part: float) -> str:
    # Adding nothing takes the sign off a zero.
    return f"{round(PERCENT * part, 1) + 0.0:.1f}"


def _turned(came: Estimate) -> Estimate:
    return Estimate(-came.value, -came.high, -came.low, came.sample)


def _verdict(gate: Gate, decision: Decision, came: Estimate, reason: str) -> Verdict:
    return Verdict(
        gate.kind,
        decision,
        came.sample,
        value=came.value if came.sample else None,
        low=came.low if came.sample else None,
        high=came.high if came.sample else None,
        reason=reason,
    )


def _enough(gate: Gate) -> float:
    return gate.limit if gate.enough is None else gate.enough


def _health(slots: Sequence[SlotReport]) -> Iterator[HealthReport]:
    return (each.health for each in slots if each.health is not None)


def _pairs(
    slots: Sequence[SlotReport], count: Callable[[HealthReport], Count]
) -> list[Pair]:
    return [
        Pair(count(each.health), count(each.before))
        for each in slots
        if each.health is not None and each.before is not None
    ]


def _slower(slots: Sequence[SlotReport]) -> Iterator[bool]:
    for each in slots:
        if each.health is None or each.before is None:
            continue
        new_ms, before_ms = each.health.p50_ms, each.before.p50_ms
        if new_ms is not None and before_ms:
            yield new_ms > SLOWER * before_ms


def _broken(slots: Sequence[SlotReport]) -> Iterator[bool]:
    for each in slots:
        if each.cascade is not None and each.cascade.standing is not None:
            yield each.cascade.standing == "broken"


JUDGES: Final[Mapping[GateKind, Callable[[Gate, Seen], Verdict]]] = {
    GateKind.SUCCESS: _of_success,
    GateKind.SILENCE: _of_silence,
    GateKind.ERRORS: _of_errors,
    GateKind.AGREEMENT: _of_agreement,
    GateKind.SPILL: _of_spill,
    GateKind.LATENCY: _of_latency,
    GateKind.PROMISE: _of_promise,
}
