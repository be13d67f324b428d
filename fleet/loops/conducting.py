"""One look at all rollouts: read, decide, write, and then the documents of those concerned.

Everything is worked out anew from the database inside one writing transaction, so the
daemon and an operator's command never overwrite each other with something older, and
a restart forgets nothing. Every call blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from broker.messages import DesiredModel
from fleet.adapters.registry import Registry
from fleet.adapters.state.database import FleetDatabase
from fleet.adapters.state.ledger import Ledger
from fleet.adapters.state.versions import PublishedVersion
from fleet.core import machine
from fleet.core.fleetwide import (
    FOLLOWED,
    Advanced,
    Fleet,
    advance_all,
    changed,
    relevant,
)
from fleet.core.following import Now
from fleet.core.listening import rebased, rebased_devices
from fleet.core.machine import Changed, Event, Tell
from fleet.core.plan import Needs
from fleet.core.rollouts import LIVE, AgentState, Course, Rollout, desired_for
from fleet.loops.documents import write_documents

WRITTEN_AT_ONCE: Final = 128
READ_AT_ONCE: Final = 16
NAMED_IN_EVENTS: Final = 1000
UNHEARD: Final = frozenset({AgentState.PENDING, AgentState.GOING_BACK})
CONDUCTOR: Final = "conductor"


@dataclass(frozen=True, slots=True)
class Looked:
    """What came of a look.

    Attributes:
        agents: of whom something else is desired now.
        live: whether a rollout is on its way, so that time alone may change something.
        advanced: each rollout that was looked at.
        unheard: agents that were told and have not said that they know.
    """

    agents: frozenset[str]
    live: bool
    advanced: tuple[Advanced, ...] = ()
    unheard: frozenset[str] = frozenset()


def look(database: FleetDatabase, now: Now) -> Looked:
    """Advance every rollout once.

    Raises:
        DatabaseUnavailable: nothing was changed.
    """
    with database.reading() as ledger:
        if FOLLOWED.isdisjoint(ledger.rollout_states().values()):
            return Looked(frozenset(), live=False)
    with database.writing() as ledger:
        advanced = advanced_in(ledger, now)
        for each in advanced:
            _keep(ledger, each, now.now_ms)
    agents = frozenset(agent for each in advanced for agent in each.step.agents)
    live = any(each.step.course.state in LIVE for each in advanced)
    unheard = frozenset(
        told.agent
        for each in advanced
        for told in each.step.course.told.values()
        if told.state in UNHEARD
    )
    return Looked(agents, live, tuple(advanced), unheard)


def rebase(database: FleetDatabase, now_ms: int) -> None:
    """Bring times that are still to come to now, after the clock was set back.

    Only the daemon's to do: a command on a machine whose clock is behind would end the
    leases of agents that the daemon has just heard.

    Raises:
        DatabaseUnavailable: nothing was changed.
    """
    with database.writing() as ledger:
        ledger.keep_devices(rebased_devices(ledger.devices().values(), now_ms))
        rollouts = relevant(ledger.rollouts(), ledger.rollout_states())
        for generation, before in ledger.courses(rollouts).items():
            after = rebased(before, now_ms)
            if after != before:
                told = after.told.values()
                ledger.keep_course(generation, after)
                ledger.keep_told(
                    generation,
                    [each for each in told if each != before.told[each.agent]],
                )


def advanced_in(ledger: Ledger, now: Now) -> list[Advanced]:
    """What a look would do, without doing it."""
    states = ledger.rollout_states()
    rollouts = relevant(ledger.rollouts(), states)
    return advance_all(
        rollouts,
        states,
        _Courses(ledger, rollouts),
        Fleet(
            ledger.devices(),
            ledger.labels(),
            {(each.model, each.version): needs_of(each) for each in ledger.versions()},
            now,
        ),
    )


class _Courses(dict[int, Course]):
    """Courses that are read when they are asked for, some at once."""

    def __init__(self, ledger: Ledger, rollouts: Sequence[Rollout]) -> None:
        super().__init__()
        self._ledger = ledger
        self._rollouts = rollouts

    def __missing__(self, generation: int) -> Course:
        unread = [
            each
            for each in self._rollouts
            if each.generation <= generation and each.generation not in self
        ]
        self.update(self._ledger.courses(unread[:READ_AT_ONCE]))
        return self[generation]


def command(
    ledger: Ledger,
    rollout: Rollout,
    event: Event,
    reason: str,
    *,
    by: str,
    now_ms: int,
) -> frozenset[str]:
    """Carry out what a person asked for.

    Returns:
        The agents of whom something else is desired now.

    Raises:
        WrongMove: it cannot be done in its state; says what can.
    """
    generation = rollout.generation
    course = ledger.courses([rollout])[generation]
    step = machine.order(rollout, course, event, reason, now_ms)
    ledger.keep_course(generation, step.course)
    ledger.keep_told(generation, step.changed)
    for each in step.decisions:
        _record(ledger, rollout, each, by=by, now_ms=now_ms)
    return step.agents


def write_desired(
    database: FleetDatabase,
    registry: Registry,
    agents: Iterable[str],
    *,
    written: Callable[[int, int], None] = lambda _done, _of: None,
    anew: bool = False,
) -> tuple[str, ...]:
    """Write what each of `agents` should serve, where that changed.

    Only after the look was committed: a document must never name a generation that a
    crash takes back and the next rollout would be given again.

    Args:
        database: open.
        registry: where agents read it.
        agents: of whom something may have changed.
        written: called with how many of how many agents are done.
        anew: write also what did not change, because the registry may have lost it.

    Returns:
        The agents for whom it changed, and who should be told.

    Raises:
        DatabaseUnavailable: documents of earlier agents were written.
        OSError: the registry cannot be written; documents before that one were.
    """
    every = sorted(agents)
    changed_for: list[str] = []
    for start in range(0, len(every), WRITTEN_AT_ONCE):
        some = every[start : start + WRITTEN_AT_ONCE]
        # Writing, so that no newer document is replaced by an older one.
        with database.writing() as ledger:
            wanted = desired_in(ledger, some)
            changed_for += write_documents(ledger, registry, wanted, anew=anew)
        written(start + len(some), len(every))
    return tuple(changed_for)


def desired_in(
    ledger: Ledger, agents: Collection[str]
) -> dict[str, tuple[DesiredModel, ...]]:
    """What each of `agents` should serve."""
    rollouts = {each.generation: each for each in ledger.rollouts()}
    states = ledger.rollout_states()
    told = ledger.told_of(agents)
    return {
        agent: desired_for(
            agent,
            [
                (
                    rollouts[generation],
                    Course(state=states[generation], told={agent: record}),
                )
                for generation, record in told.get(agent, {}).items()
            ],
        )
        for agent in agents
    }


def needs_of(version: PublishedVersion) -> Needs:
    """What a version asks of a device."""
    requires = version.requires
    return Needs(
        machines=frozenset(requires.get("machines", ())),
        boards=frozenset(requires.get("boards", ())),
        runtimes=frozenset(requires.get("runtimes", ())),
        memory_mb=requires.get("memory_mb", 0),
        size_bytes=version.size_bytes,
    )


def _keep(ledger: Ledger, advanced: Advanced, now_ms: int) -> None:
    rollout, step = advanced.rollout, advanced.step
    if changed(advanced):
        ledger.keep_course(rollout.generation, step.course)
    ledger.keep_told(rollout.generation, step.changed)
    for each in step.decisions:
        _record(ledger, rollout, each, by=CONDUCTOR, now_ms=now_ms)


def _record(
    ledger: Ledger, rollout: Rollout, decision: Tell | Changed, *, by: str, now_ms: int
) -> None:
    generation, details = rollout.generation, {**described(decision), "by": by}
    named = list(decision.agents[:NAMED_IN_EVENTS])
    kind = kind_of(decision)
    ledger.keep_event(generation, kind, {**details, "named": named}, at_ms=now_ms)
    if isinstance(decision, Changed):
        said = {"model": rollout.model, "version": rollout.version, **details}
        ledger.record(by, f"rollout.{kind}", str(generation), said, at_ms=now_ms)


def kind_of(decision: Tell | Changed) -> str:
    """What it is called in a rollout's history."""
    return "tell" if isinstance(decision, Tell) else decision.event.value


def described(decision: Tell | Changed) -> dict[str, Any]:
    """A decision for the record and for logs."""
    said: dict[str, Any] = {"wave": decision.wave, "agents": len(decision.agents)}
    if isinstance(decision, Tell):
        return {**said, "shadow": decision.shadow}
    return {**said, "reason": decision.reason} if decision.reason else said
