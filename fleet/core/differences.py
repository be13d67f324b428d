"""What stands between the fleet and what was declared of it, as values.

Applying makes each difference go away, so a second apply finds none. A rollout that went
back or was aborted is never begun again by itself: what stopped it would stop it again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from shlex import quote
from typing import Final

from fleet.core.amounts import percent, seconds, window
from fleet.core.declared import AUTO, FEW_AGENTS, DeclaredFleet, DeclaredRollout
from fleet.core.gates import DEFAULT_GATES, Gate
from fleet.core.ordering import terms_of
from fleet.core.rollouts import GONE_BACK, LIVE, Course, Rollout, RolloutState, Wave
from fleet.core.terms import Terms

DEFAULTS: Final = {each.kind: each for each in DEFAULT_GATES}


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
        rollouts=tuple(_rollout_changes(declared, rollouts)),
        unheard=tuple(sorted(set(declared.labels).difference(known))),
    )


def term_changes(before: Rollout | Terms, after: Rollout | Terms) -> list[TermChange]:
    """What differs between how two rollouts are carried out, in words."""
    one, other = said(before), said(after)
    return [
        TermChange(term, one[term], other[term])
        for term in one
        if one[term] != other[term]
    ]


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


def _rollout_changes(
    declared: DeclaredFleet, rollouts: Sequence[tuple[Rollout, Course]]
) -> list[RolloutChange]:
    changes = [_rollout_change(each, rollouts) for each in declared.rollouts]
    begun = [each.declared for each in changes if each.change is Change.START]
    for index, each in enumerate(changes):
        # What begins for more agents takes those of what there is.
        over = [one for one in begun if _takes_over(one, each.declared)]
        if each.change is Change.NONE and over:
            reason = (
                f"{each.reason}, and version {over[0].version} would take its agents"
            )
            changes[index] = replace(each, change=Change.START, reason=reason)
    return changes


def _rollout_change(
    declared: DeclaredRollout, rollouts: Sequence[tuple[Rollout, Course]]
) -> RolloutChange:
    same = sorted(
        (each for each in rollouts if _whom(each[0]) == declared.whom),
        key=lambda each: each[0].generation,
    )
    if not same:
        return RolloutChange(
            declared, Change.START, "no rollout of it for these agents yet"
        )
    stopped = _stopped(declared, same)
    if stopped is not None:
        return stopped
    newest, course = same[-1]
    there = f"rollout {newest.generation} is {_words(course)}"
    terms = tuple(_term_changes(newest, declared))
    change, reason = Change.START, f"{there}, with other terms"
    if newest.version != declared.version:
        reason = f"rollout {newest.generation} is of version {newest.version}"
        change_of_version = TermChange("version", newest.version, declared.version)
        terms = (change_of_version, *terms)
    elif any(other.buries(newest) for other, _ in rollouts):
        reason = f"{there}, and a newer one took its agents"
    elif not terms:
        change, reason = Change.NONE, there
    elif course.state not in LIVE:
        # Waves and gates have done their work; they matter to the next version.
        change, reason = Change.NONE, f"{there}; new terms are for the next version"
    return RolloutChange(declared, change, reason, newest.generation, terms)


def _stopped(
    declared: DeclaredRollout, same: Sequence[tuple[Rollout, Course]]
) -> RolloutChange | None:
    """Whether this version was the last time taken back, whatever came after it."""
    tried = [each for each in same if each[0].version == declared.version]
    if not tried or tried[-1][1].state not in GONE_BACK | {RolloutState.ABORTED}:
        return None
    rollout, course = tried[-1]
    why = f" ({course.reason})" if course.reason else ""
    again = f"overspill rollout start {declared.model} {declared.version}"
    # Without these it would be for every agent.
    if declared.agents is not None:
        again += f" --agents {','.join(sorted(declared.agents))}"
    if declared.where is not None:
        again += f" --where {quote(declared.where)}"
    return RolloutChange(
        declared,
        Change.BLOCKED,
        f"rollout {rollout.generation} of this version is {_words(course)}{why}: "
        f"declare another version, or begin it again with `{again}`",
        rollout.generation,
    )


def _term_changes(newest: Rollout, declared: DeclaredRollout) -> list[TermChange]:
    few = term_changes(newest, terms_of(declared, 0))
    if declared.waves != AUTO or not few:
        return few
    # How many agents there are may have changed what `auto` means since.
    return term_changes(newest, terms_of(declared, FEW_AGENTS + 1))


def _takes_over(one: DeclaredRollout, other: DeclaredRollout) -> bool:
    """Whether a rollout of the first, begun now, would leave the second no agent."""
    return _order(one, 2).buries(_order(other, 1))


def breadth(declared: DeclaredRollout) -> tuple[bool, bool]:
    """What to begin first: the rollout for more agents, as a later one takes from it."""
    return declared.where is not None, declared.agents is not None


def _order(declared: DeclaredRollout, generation: int) -> Rollout:
    return Rollout(
        generation,
        declared.model,
        declared.version,
        0,
        declared.agents,
        query=declared.where,
    )


def _whom(rollout: Rollout) -> tuple[str, frozenset[str] | None, str | None]:
    return rollout.model, rollout.targets, rollout.query


def _words(course: Course) -> str:
    return course.state.value.replace("_", " ")


def said(terms: Rollout | Terms) -> dict[str, str]:
    """How a rollout is carried out, term by term, as people write it."""
    policy = terms.policy
    return {
        "waves": waves_text(terms),
        "gates": ", ".join(map(gate_text, terms.gates)) or "off",
        "window": "any time" if policy.window is None else window(policy.window),
        "max_parallel": str(terms.max_parallel),
        "lease": seconds(terms.lease_s),
        "patience": seconds(terms.patience_s),
        "on_failure": terms.on_failure.value,
        "probation": seconds(policy.probation_s),
        "probation_requests": str(policy.probation_requests),
        "max_error_share": percent(policy.max_error_share),
        "max_agreement_drop": percent(policy.max_agreement_drop),
        "max_slowdown": f"{policy.max_slowdown:g}",
        "rate": _bytes(policy.bytes_per_s),
        "budget": _bytes(policy.bytes_per_day),
        "shared": "yes" if policy.shared else "no",
    }


def waves_text(rollout: Rollout | Terms) -> str:
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


def gate_text(gate: Gate) -> str:
    """A gate in one line, with what differs from its defaults."""
    default = DEFAULTS.get(gate.kind, gate)
    besides = [
        f"{name} {percent(value) if isinstance(value, float) else value}"
        for name in ("enough", "min_sample", "unsure", "false_alarm")
        if (value := getattr(gate, name)) != getattr(default, name)
    ]
    more = f" ({', '.join(besides)})" if besides else ""
    return f"{gate.kind.value} {percent(gate.limit)}{more}"


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


def _bytes(value: int | None) -> str:
    return "no limit" if value is None else f"{value} B"
