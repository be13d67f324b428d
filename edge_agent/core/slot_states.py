"""The states of an update and what leads from one to the next: a table.

An event that has no entry is an error: a fault of the program.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class State(StrEnum):
    """How far the last update has come; the words of `SlotReport.state`."""

    IDLE = "idle"
    WAITING = "waiting"
    PULLING = "pulling"
    TESTING = "testing"
    SHADOW = "shadow"
    PROBATION = "probation"
    SWAPPED = "swapped"
    RETURNED = "returned"
    REFUSED = "refused"


class Event(StrEnum):
    """What can happen to an update."""

    PULL = "pull"
    WAIT = "wait"
    PULLED = "pulled"
    PASSED = "passed"
    SHADOWED = "shadowed"
    STARTED = "started"
    COMMITTED = "committed"
    RETURNED = "returned"
    STRANDED = "stranded"
    REFUSED = "refused"
    WENT_BACK = "went_back"
    ADOPTED = "adopted"
    INTERRUPTED = "interrupted"


# From where an update may begin, be put off or be refused; and a desired version that
# is on the disk already be taken.
_AT_REST: Final = (
    State.IDLE,
    State.WAITING,
    State.SHADOW,
    State.SWAPPED,
    State.RETURNED,
    State.REFUSED,
)
# A newer wish replaces a pull at once; a trial of seconds is waited for.
_OPEN: Final = (*_AT_REST, State.PULLING)

NEXT: Final[dict[tuple[State, Event], State]] = {
    **{(state, Event.PULL): State.PULLING for state in _OPEN},
    **{(state, Event.WAIT): State.WAITING for state in (*_OPEN, State.TESTING)},
    **{(state, Event.REFUSED): State.REFUSED for state in (*_OPEN, State.TESTING)},
    **{(state, Event.WENT_BACK): State.SWAPPED for state in (*_OPEN, State.PROBATION)},
    **{(state, Event.ADOPTED): State.IDLE for state in _OPEN},
    (State.SWAPPED, Event.ADOPTED): State.SWAPPED,
    (State.PROBATION, Event.ADOPTED): State.PROBATION,
    (State.PULLING, Event.PULLED): State.TESTING,
    (State.TESTING, Event.PASSED): State.PROBATION,
    (State.TESTING, Event.SHADOWED): State.SHADOW,
    (State.PROBATION, Event.STARTED): State.PROBATION,
    (State.PROBATION, Event.COMMITTED): State.SWAPPED,
    (State.PROBATION, Event.RETURNED): State.RETURNED,
    (State.PROBATION, Event.STRANDED): State.IDLE,
    # A stop of the agent: pulls and trials are forgotten, all else goes on.
    **{(state, Event.INTERRUPTED): state for state in (*_AT_REST, State.PROBATION)},
    (State.PULLING, Event.INTERRUPTED): State.IDLE,
    (State.TESTING, Event.INTERRUPTED): State.IDLE,
}


class WrongMove(RuntimeError):
    """An event that cannot happen in this state: a fault of the program."""


def after(state: State, event: Event, model: str) -> State:
    """The state that an event leads to.

    Raises:
        WrongMove: it cannot happen in this state.
    """
    try:
        return NEXT[state, event]
    except KeyError:
        raise WrongMove(
            f"model {model!r}: {event.value!r} cannot follow {state.value!r}"
        ) from None
