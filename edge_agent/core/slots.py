"""What an agent's slots hold of one model, and what to do about the desired version.

The states are a table; an event that has no entry is an error. The active version
serves in every state: a pull, a trial and a refusal never touch it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Final, Self

from pydantic import ValidationError

from broker.codec import explain
from broker.messages import DesiredModel, SlotReport


class State(StrEnum):
    """How far the last update has come; the words of `SlotReport.state`."""

    IDLE = "idle"
    PULLING = "pulling"
    TESTING = "testing"
    SWAPPED = "swapped"
    REFUSED = "refused"


class Event(StrEnum):
    """What can happen to an update."""

    PULL = "pull"
    PULLED = "pulled"
    PASSED = "passed"
    REFUSED = "refused"
    WENT_BACK = "went_back"
    ADOPTED = "adopted"
    INTERRUPTED = "interrupted"


NEXT: Final[dict[tuple[State, Event], State]] = {
    (State.IDLE, Event.PULL): State.PULLING,
    (State.IDLE, Event.REFUSED): State.REFUSED,
    (State.IDLE, Event.WENT_BACK): State.SWAPPED,
    (State.IDLE, Event.ADOPTED): State.IDLE,
    (State.IDLE, Event.INTERRUPTED): State.IDLE,
    # Another version may be desired while one is pulled: the newer one wins.
    (State.PULLING, Event.PULL): State.PULLING,
    (State.PULLING, Event.PULLED): State.TESTING,
    (State.PULLING, Event.REFUSED): State.REFUSED,
    (State.PULLING, Event.WENT_BACK): State.SWAPPED,
    (State.PULLING, Event.ADOPTED): State.IDLE,
    (State.PULLING, Event.INTERRUPTED): State.IDLE,
    (State.TESTING, Event.PASSED): State.SWAPPED,
    (State.TESTING, Event.REFUSED): State.REFUSED,
    (State.TESTING, Event.INTERRUPTED): State.IDLE,
    (State.SWAPPED, Event.PULL): State.PULLING,
    (State.SWAPPED, Event.REFUSED): State.REFUSED,
    (State.SWAPPED, Event.WENT_BACK): State.SWAPPED,
    (State.SWAPPED, Event.ADOPTED): State.SWAPPED,
    (State.SWAPPED, Event.INTERRUPTED): State.SWAPPED,
    (State.REFUSED, Event.PULL): State.PULLING,
    (State.REFUSED, Event.REFUSED): State.REFUSED,
    (State.REFUSED, Event.WENT_BACK): State.SWAPPED,
    (State.REFUSED, Event.ADOPTED): State.IDLE,
    (State.REFUSED, Event.INTERRUPTED): State.REFUSED,
}


class WrongMove(RuntimeError):
    """An event that cannot happen in this state: a fault of the program."""


class BadSlots(ValueError):
    """The stored slots cannot be read; says what is wrong with them."""


@dataclass(frozen=True, slots=True)
class Slots:
    """The slots of one model.

    Attributes:
        model: its name.
        active: the version that serves; None until the first has passed its trial.
        previous: the version that served before it and is still on the disk.
        staged: the version being pulled or tested; after a refusal, the version
            that was refused, whose files are gone.
        state: how far the last update has come.
        reason: why the last update was refused; None otherwise.
        generation: of the desired state that this answers.
    """

    model: str
    active: str | None = None
    previous: str | None = None
    staged: str | None = None
    state: State = State.IDLE
    reason: str | None = None
    generation: int = 0

    def pulling(self, version: str, generation: int) -> Self:
        """A pull of `version` begins."""
        return replace(
            self,
            state=self._after(Event.PULL),
            staged=version,
            reason=None,
            generation=generation,
        )

    def pulled(self) -> Self:
        """The staged version is on the disk and verified; its trial begins."""
        return replace(self, state=self._after(Event.PULLED))

    def passed(self) -> Self:
        """The staged version passed its trial: it serves, the active one is kept."""
        return replace(
            self,
            state=self._after(Event.PASSED),
            active=self.staged,
            previous=self.active,
            staged=None,
            reason=None,
        )

    def refused(
        self, reason: str, version: str | None = None, generation: int | None = None
    ) -> Self:
        """The staged version will not serve; the active one goes on.

        Args:
            reason: for the operator, one sentence.
            version: when none was staged, the version that was refused.
            generation: when none was staged, that of the desired state.
        """
        refused = version or self.staged
        return replace(
            self,
            state=self._after(Event.REFUSED),
            staged=refused,
            # A previous version that would not serve again is no way back.
            previous=None if refused == self.previous else self.previous,
            reason=reason[:1024],
            generation=self.generation if generation is None else generation,
        )

    def went_back(self, generation: int) -> Self:
        """The previous version serves again; the two have changed places."""
        state = self._after(Event.WENT_BACK)
        if self.previous is None:
            raise WrongMove(f"model {self.model!r} has no previous version")
        return replace(
            self,
            state=state,
            active=self.previous,
            previous=self.active,
            staged=None,
            reason=None,
            generation=generation,
        )

    def adopted(self, generation: int) -> Self:
        """The active version is the desired one: only the generation is new."""
        return replace(
            self,
            state=self._after(Event.ADOPTED),
            staged=None,
            reason=None,
            generation=generation,
        )

    def interrupted(self) -> Self:
        """The agent stopped: an unfinished pull or trial is forgotten."""
        state = self._after(Event.INTERRUPTED)
        if state is self.state:
            return self
        return replace(self, state=state, staged=None)

    def _after(self, event: Event) -> State:
        try:
            return NEXT[self.state, event]
        except KeyError:
            raise WrongMove(
                f"model {self.model!r}: {event.value!r} cannot follow {self.state.value!r}"
            ) from None

    def report(self) -> SlotReport:
        """What the fleet hears of these slots."""
        return SlotReport(**{**asdict(self), "state": self.state.value})

    def to_json(self) -> str:
        """These slots as they are stored."""
        return json.dumps({**asdict(self), "state": self.state.value}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read stored slots.

        Raises:
            BadSlots: it is not JSON, or a field is missing or wrong.
        """
        try:
            read = SlotReport.model_validate_json(text)
        except ValidationError as error:
            raise BadSlots(f"stored slots: {explain(error)}") from error
        return cls(
            read.model,
            read.active,
            read.previous,
            read.staged,
            State(read.state),
            read.reason,
            read.generation,
        )


@dataclass(frozen=True, slots=True)
class Nothing:
    """The slots are as desired, or as near to it as this generation will come."""


@dataclass(frozen=True, slots=True)
class Pull:
    """Pull this version, try it and swap; drop any other pull of this model."""

    version: str
    generation: int


@dataclass(frozen=True, slots=True)
class GoBack:
    """Swap to the previous version, which is on the disk already."""

    version: str
    generation: int


@dataclass(frozen=True, slots=True)
class Adopt:
    """The active version is the desired one: record the generation and report it."""

    generation: int


def decide(
    desired: DesiredModel | None, slots: Slots
) -> Nothing | Pull | GoBack | Adopt:
    """What brings the slots to the desired version.

    A version that was refused is not tried again in the same generation; a newer
    generation tries it once more. An older generation than the slots' is a late
    message and changes nothing. A model that is no longer desired goes on serving.
    """
    if desired is None or desired.generation < slots.generation:
        return Nothing()
    if slots.state is State.TESTING or _tried(desired, slots):
        # A trial takes seconds; what is desired is looked at again when it ends.
        return Nothing()
    if desired.version == slots.active:
        return _settle(desired, slots)
    if desired.version == slots.previous:
        return GoBack(desired.version, desired.generation)
    return Pull(desired.version, desired.generation)


def _tried(desired: DesiredModel, slots: Slots) -> bool:
    """Whether this very wish is under way or was refused."""
    return slots.state in (State.PULLING, State.REFUSED) and (
        (desired.version, desired.generation) == (slots.staged, slots.generation)
    )


def _settle(desired: DesiredModel, slots: Slots) -> Nothing | Adopt:
    if slots.staged is None and desired.generation == slots.generation:
        return Nothing()
    return Adopt(desired.generation)
