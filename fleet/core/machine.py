"""The rollout as a state machine: what may follow what, and what people may ask for.

What follows from reports and from time is decided in `fleet.core.advancing`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from fleet.core.gates import Decision
from fleet.core.rollouts import (
    AgentState,
    Course,
    Rollout,
    RolloutState,
    Told,
)


class Event(StrEnum):
    """What can happen to a rollout."""

    WIDEN = "widen"
    ASK = "ask"
    APPROVE = "approve"
    PAUSE = "pause"
    RESUME = "resume"
    ROLL_BACK = "roll_back"
    ALL_BACK = "all_back"
    FINISH = "finish"
    FAIL = "fail"
    ABORT = "abort"
    SUPERSEDE = "supersede"


R, E = RolloutState, Event
NEXT: Final[dict[tuple[RolloutState, Event], RolloutState]] = {
    (R.RUNNING, E.WIDEN): R.RUNNING,
    (R.RUNNING, E.ASK): R.AWAITING_APPROVAL,
    (R.RUNNING, E.PAUSE): R.PAUSED,
    (R.RUNNING, E.ROLL_BACK): R.ROLLING_BACK,
    (R.RUNNING, E.FINISH): R.DONE,
    (R.RUNNING, E.FAIL): R.FAILED,
    (R.RUNNING, E.ABORT): R.ABORTED,
    (R.RUNNING, E.SUPERSEDE): R.SUPERSEDED,
    (R.AWAITING_APPROVAL, E.APPROVE): R.RUNNING,
    (R.AWAITING_APPROVAL, E.PAUSE): R.PAUSED,
    (R.AWAITING_APPROVAL, E.ROLL_BACK): R.ROLLING_BACK,
    (R.AWAITING_APPROVAL, E.ABORT): R.ABORTED,
    (R.AWAITING_APPROVAL, E.SUPERSEDE): R.SUPERSEDED,
    (R.PAUSED, E.RESUME): R.RUNNING,
    (R.PAUSED, E.ROLL_BACK): R.ROLLING_BACK,
    (R.PAUSED, E.ABORT): R.ABORTED,
    (R.PAUSED, E.SUPERSEDE): R.SUPERSEDED,
    (R.ROLLING_BACK, E.ALL_BACK): R.ROLLED_BACK,
    (R.ROLLING_BACK, E.SUPERSEDE): R.SUPERSEDED,
    # An agent that had refused may mend, and what is done may still turn out bad.
    (R.FAILED, E.FINISH): R.DONE,
    (R.FAILED, E.ROLL_BACK): R.ROLLING_BACK,
    (R.DONE, E.ROLL_BACK): R.ROLLING_BACK,
    (R.ABORTED, E.ROLL_BACK): R.ROLLING_BACK,
}
# What a person may ask for, as it is typed; the other events happen by themselves.
COMMANDS: Final = {
    E.PAUSE: "pause",
    E.RESUME: "resume",
    E.APPROVE: "approve",
    E.ABORT: "abort",
    E.ROLL_BACK: "rollback",
}
# Who comes later is told at once, and no gate is asked any more.
OPEN: Final = frozenset({R.DONE, R.FAILED})


class WrongMove(ValueError):
    """An event that cannot happen in this state; says what can."""


@dataclass(frozen=True, slots=True)
class Tell:
    """Make the version (or with `shadow` a shadow of it) desired of these agents."""

    agents: tuple[str, ...]
    wave: int
    shadow: bool = False


@dataclass(frozen=True, slots=True)
class Changed:
    """The rollout is in another state or wave; `agents` are desired something else."""

    event: Event
    reason: str
    wave: int
    agents: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """The course after a look, what was decided, and whose record changed."""

    course: Course
    decisions: tuple[Tell | Changed, ...] = ()
    changed: tuple[Told, ...] = ()

    @property
    def agents(self) -> frozenset[str]:
        """Those of whom something else is desired now."""
        return frozenset(agent for each in self.decisions for agent in each.agents)


def order(
    rollout: Rollout, course: Course, event: Event, reason: str, now_ms: int
) -> Step:
    """What a person asked for: PAUSE, RESUME, APPROVE, ABORT or ROLL_BACK.

    Raises:
        WrongMove: it cannot be done in this state; says what can.
    """
    if event is E.ROLL_BACK:
        _check_way_back(rollout, course)
    if event is E.SUPERSEDE and (course.state, event) not in NEXT:
        return Step(course)
    moved = moved_by(rollout, course, event, reason, now_ms)
    if event is E.APPROVE:
        moved = replace(moved, approved=course.wave)
    if event is E.RESUME:
        failed = {
            each.kind for each in course.verdicts if each.decision is Decision.FAIL
        }
        moved = replace(moved, waived=course.waived | failed)
    return Step(
        moved,
        (Changed(event, reason, moved.wave, affected(course, event)),),
        tuple(moved.told.values()) if event is E.ROLL_BACK else (),
    )


def can(course: Course, event: Event) -> bool:
    """Whether this may happen now."""
    return (course.state, event) in NEXT


def moved_by(
    rollout: Rollout, course: Course, event: Event, reason: str, now_ms: int
) -> Course:
    """The course after an event.

    Raises:
        WrongMove: it cannot happen in this state; says what can.
    """
    state = NEXT.get((course.state, event))
    if state is None:
        may = [
            COMMANDS[each]
            for was, each in NEXT
            if was is course.state and each in COMMANDS
        ]
        words = ", ".join(sorted(may)) or "nothing any more"
        raise WrongMove(
            f"rollout {rollout.generation} of {rollout.model} is "
            f"{course.state.value.replace('_', ' ')}, so it cannot "
            f"{event.value.replace('_', ' ')}; what you can do with it: {words}"
        )
    moved = replace(course, state=state, since_ms=now_ms, reason=reason or None)
    if event is E.ROLL_BACK:
        told = {
            agent: replace(
                each, state=AgentState.GOING_BACK, since_ms=now_ms, mark=0, reason=None
            )
            for agent, each in course.told.items()
        }
        moved = replace(moved, told=told)
    return moved


def _check_way_back(rollout: Rollout, course: Course) -> None:
    if rollout.way_back is None and not all(
        each.shadow for each in course.told.values()
    ):
        raise WrongMove(
            f"rollout {rollout.generation}: no way back was signed for "
            f"{rollout.model} {rollout.version}: start a rollout of the version to serve"
        )


def affected(course: Course, event: Event) -> tuple[str, ...]:
    """The agents of whom something else is desired after an event."""
    if event is E.ROLL_BACK:
        return tuple(course.told)
    if event in {E.ABORT, E.SUPERSEDE}:
        return tuple(agent for agent, each in course.told.items() if each.shadow)
    return ()
