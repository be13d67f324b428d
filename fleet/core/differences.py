"""What stands between the fleet and what was declared of it, as values.

Applying makes each difference go away, so a second apply finds none. A rollout that went
back or was aborted is never begun again by itself: what stopped it would stop it again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any, Final

from fleet.core.amounts import percent, seconds, window
from fleet.core.declared import AUTO, FEW_AGENTS, DeclaredFleet, DeclaredRollout
from fleet.core.gates import Gate
from fleet.core.rollouts import GONE_BACK, LIVE, Course, Rollout, RolloutState, Wave


class Change(StrEnum):
    """What applying does about a declared rollout."""

    NONE = "none"
    START = "start"
    BLOCKED = "blocked"


@dataclass(frozen=True, slots=True)
class LabelChange:
    """A label of one agent; `before` or `after` is None when it is not there."""

    agent: str
    key: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class TermChange:
    """One term of a rollout, as people write it."""

    term: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class RolloutChange:
    """One declared rollout beside the newest of the same model for the same agents.

    Attributes:
        declared: what was declared.
        change: what applying does.
        reason: one sentence.
        generation: of the rollout that there is.
        terms: what differs from it.
    """

    declared: DeclaredRollout
    change: Change
    reason: str
    generation: int | None = None
    terms: tuple[TermChange, ...] = ()


@dataclass(frozen=True, slots=True)
class Differences:
    """All of them; `unheard` are labelled agents that have never reported."""

    labels: tuple[LabelChange, ...] = ()
    rollouts: tuple[RolloutChange, ...] = ()
    unheard: tuple[str, ...] = ()

    @property
    def any(self) -> bool:
        """Whether the fleet is not as declared."""
        return bool(self.labels) or any(
            each.change is not Change.NONE for each in self.rollouts
        )

    @property
    def blocked(self) -> tuple[RolloutChange, ...]:
        """What applying cannot make go away."""
        return tuple(each for each in self.rollouts if each.change is Change.BLOCKED)


# Not ordered by people, or told by `generation` itself.
_GIVEN: Final = frozenset(
    {"generation", "started_at_ms", "epoch", "way_back", "seed", "by", "model"}
)


def compare(
    declared: DeclaredFleet,
    labels: Mapping[str, Mapping[str, str]],
    known: Collection[str],
    rollouts: Sequence[tuple[Rollout, Course]],
) -> Differences:
    """What differs.

    Args:
        declared: what should be.
        labels: operators' labels, by agent.
        known: every agent that ever reported.
        rollouts: every rollout with its course, in any order.
    """
    return Differences(
        labels=tuple(_label_changes(declared, labels)),
        rollouts=tuple(_rollout_change(each, rollouts) for each in declared.rollouts),
        unheard=tuple(sorted(set(declared.labels).difference(known))),
    )


def same_terms(one: Rollout, other: Rollout) -> bool:
    """Whether two orders ask for the same, whenever and by whomever."""
    return _terms(one) == _terms(other)


def term_changes(before: Rollout, after: Rollout) -> tuple[TermChange, ...]:
    """What differs between two orders, in words."""
    one, other = _said(before), _said(after)
    return tuple(
        TermChange(term, one[term], other[term])
        for term in one
        if one[term] != other[term]
    )


def _label_changes(
    declared: DeclaredFleet, labels: Mapping[str, Mapping[str, str]]
) -> list[LabelChange]:
    changes = []
    for agent in sorted(declared.labels):
        there = labels.get(agent, {})
        for key, wanted in sorted(declared.labels[agent].items()):
            if there.get(key) != wanted:
                changes.append(LabelChange(agent, key, there.get(key), wanted))
    return changes


def _rollout_change(
    declared: DeclaredRollout, rollouts: Sequence[tuple[Rollout, Course]]
) -> RolloutChange:
    same = [
        each
        for each in rollouts
        if (each[0].model, each[0].targets, each[0].query)
        == (declared.model, *declared.agents_and_query)
    ]
    if not same:
        return RolloutChange(
            declared, Change.START, "no rollout of it for these agents yet"
        )
    newest, course = max(same, key=lambda each: each[0].generation)
    # How many agents there are may have changed what `auto` means since.
    few, many = declared.ordered(0), declared.ordered(FEW_AGENTS + 1)
    wanted = few if declared.waves != AUTO or same_terms(newest, few) else many
    terms = term_changes(newest, wanted)
    state = course.state.value.replace("_", " ")
    there = f"rollout {newest.generation} is {state}"
    change, reason = Change.START, f"{there} with other terms"
    if newest.version != declared.version:
        reason = f"rollout {newest.generation} is of version {newest.version}"
    elif course.state is RolloutState.SUPERSEDED:
        reason = f"{there} by a newer one for other agents"
    elif course.state in GONE_BACK | {RolloutState.ABORTED}:
        why = f" ({course.reason})" if course.reason else ""
        change, reason = (
            Change.BLOCKED,
            f"{there}{why}: declare another version, or begin it again with "
            f"`overspill rollout start {declared.model} {declared.version}`",
        )
    elif not terms:
        change, reason = Change.NONE, there
    elif course.state not in LIVE:
        # Waves and gates have done their work; they matter to the next version.
        change, reason = Change.NONE, f"{there}: new terms are for the next version"
    return RolloutChange(declared, change, reason, newest.generation, terms)


def _terms(rollout: Rollout) -> Rollout:
    return replace(
        rollout,
        generation=0,
        started_at_ms=0,
        epoch=0,
        way_back=None,
        seed=0,
        by="",
        targets=None,
        query=None,
    )


def _said(rollout: Rollout) -> dict[str, str]:
    """The terms as people write them."""
    said = {
        each.name: _text(getattr(rollout, each.name))
        for each in fields(rollout)
        if each.name not in _GIVEN | {"policy", "waves", "rate", "gates"}
    }
    for name in ("lease_s", "patience_s"):
        said[name.removesuffix("_s")] = seconds(getattr(rollout, name))
        del said[name]
    said["waves"] = waves_text(rollout)
    said["gates"] = ", ".join(map(gate_line, rollout.gates)) or "off"
    policy = rollout.policy
    said["window"] = "any time" if policy.window is None else window(policy.window)
    for name, value in policy.model_dump(exclude={"window"}).items():
        said[f"policy.{name}"] = _text(value)
    return said


def waves_text(rollout: Rollout) -> str:
    """The waves of a rollout in one line."""
    said = [
        _wave_line(each) for each in rollout.waves if each.shadow or not rollout.rate
    ]
    if rollout.rate is not None:
        rate = rollout.rate
        said.append(
            f"{rate.base}x{rate.factor:g}" + _besides(rate.soak_s, approve=rate.approve)
        )
    return ", ".join(said)


def gate_line(gate: Gate) -> str:
    """A gate in one line."""
    return f"{gate.kind.value} {percent(gate.limit)}"


def _wave_line(wave: Wave) -> str:
    return reach(wave) + _besides(wave.soak_s, approve=wave.approve, shadow=wave.shadow)


def reach(wave: Wave) -> str:
    """How far a wave spreads the version: `10`, `5%` or `all`."""
    if wave.count is not None:
        return str(wave.count)
    return "all" if wave.share is None else percent(wave.share)


def _besides(soak_s: float, *, approve: bool, shadow: bool = False) -> str:
    words = ["shadow"] if shadow else []
    if soak_s:
        words.append(f"soak {seconds(soak_s)}")
    if approve:
        words.append("approve")
    return f" ({', '.join(words)})" if words else ""


def _text(value: Any) -> str:  # noqa: ANN401 - any term of an order
    if value is None:
        return "none"
    if isinstance(value, frozenset):
        return ", ".join(sorted(value))
    return f"{value:g}" if isinstance(value, float) else str(value)
