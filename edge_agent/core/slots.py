"""What an agent's slots hold of one model, and what to do about the desired version.

The states are a table (`slot_states`). The active version serves in every state: a
pull, a trial, a shadow and a refusal never touch it. A new version is active from its
probation on, but nothing is settled before it is committed: until then the floor stays
where it was and the version before is the way back.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final, Self

from pydantic import ValidationError

from broker.codec import explain
from broker.messages import (
    Id,
    Message,
    ModelVersion,
    MonotonicCount,
    ShortText,
    SlotReport,
    UpdatePolicy,
)
from edge_agent.core.slot_states import Event, State, WrongMove, after

__all__ = ["BadSlots", "Slots", "State"]

MAX_REASON: Final = 1024


class BadSlots(ValueError):
    """The stored slots cannot be read; says what is wrong with them."""


@dataclass(frozen=True, slots=True)
class Slots:
    """The slots of one model.

    Attributes:
        model: its name.
        active: the version that serves; None until the first has passed its trial.
        previous: the version that served before it and is still on the disk.
        staged: the version being pulled, tested or shadowing; after a refusal or a
            return, the version that will not serve, whose files are gone.
        state: how far the last update has come.
        reason: why the last update was refused, returned or waits; None otherwise.
        generation: of the desired state that this answers.
        epoch: in which the active version was desired.
        previous_epoch: the same of the previous version.
        staged_epoch: the same of the staged one.
        floor: nothing below this epoch is taken: what was committed came in it.
        floor_after: the floor once the version on probation is committed; None: its
            epoch.
        seen: the newest epoch of a publish that ever served here, proved or not.
        starts: how often a process has begun to serve the version on probation and
            was not seen to stop; 0 when nothing is on probation.
        policy: of the probation, so that it goes on over a restart without a link.
    """

    model: str
    active: str | None = None
    previous: str | None = None
    staged: str | None = None
    state: State = State.IDLE
    reason: str | None = None
    generation: int = 0
    epoch: int = 0
    previous_epoch: int = 0
    staged_epoch: int = 0
    floor: int = 0
    floor_after: int | None = None
    seen: int = 0
    starts: int = 0
    policy: UpdatePolicy | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever taken of this model."""
        return (
            self.active is None
            and self.previous is None
            and not self.floor
            and self.state in (State.IDLE, State.WAITING, State.REFUSED)
        )

    def pulling(self, version: str, generation: int, epoch: int = 0) -> Self:
        """A pull of `version` begins; what the same one waited for stays to be read."""
        waited = self.state is State.WAITING and (version, generation) == (
            self.staged,
            self.generation,
        )
        return replace(
            self,
            state=self._after(Event.PULL),
            staged=version,
            staged_epoch=epoch,
            reason=self.reason if waited else None,
            generation=generation,
        )

    def waiting(
        self, reason: str, version: str, generation: int, epoch: int = 0
    ) -> Self:
        """The update is put off, and why; it is decided anew at the next look."""
        return replace(
            self,
            state=self._after(Event.WAIT),
            staged=version,
            staged_epoch=epoch,
            reason=reason[:MAX_REASON],
            generation=generation,
        )

    def pulled(self) -> Self:
        """The staged version is on the disk and verified; its trial begins."""
        return replace(self, state=self._after(Event.PULLED))

    def without_previous(self) -> Self:
        """The way back beyond the active version is given up, for its room."""
        if self.state is State.PROBATION:
            raise WrongMove(f"model {self.model!r} needs its way back: on probation")
        return replace(self, previous=None, previous_epoch=0)

    def shadowed(self) -> Self:
        """The staged version passed its trial and runs beside the active one."""
        return replace(self, state=self._after(Event.SHADOWED), reason=None)

    def passed(
        self, policy: UpdatePolicy | None = None, *, way_back: bool = False
    ) -> Self:
        """The staged version passed its trial: it serves, on probation.

        Args:
            policy: of the probation.
            way_back: its epoch was signed as the way back from the one before.
        """
        epoch = self.staged_epoch
        return replace(
            self,
            state=self._after(Event.PASSED),
            active=self.staged,
            epoch=epoch,
            floor_after=self._floor_by(epoch, way_back=way_back),
            seen=self.seen if way_back else max(self.seen, epoch),
            previous=self.active,
            previous_epoch=self.epoch,
            staged=None,
            staged_epoch=0,
            reason=None,
            starts=1,
            policy=policy or UpdatePolicy(),
        )

    def started(self) -> Self:
        """A process begins that will serve the version on probation."""
        return replace(
            self, state=self._after(Event.STARTED), starts=min(self.starts + 1, 1000)
        )

    def stopped(self) -> Self:
        """The process that serves it ends in good order."""
        return replace(
            self, state=self._after(Event.STARTED), starts=max(0, self.starts - 1)
        )

    def committed(self) -> Self:
        """The version on probation is proved: it is the one to go back to from now on."""
        return replace(
            self,
            state=self._after(Event.COMMITTED),
            floor=max(
                self.floor,
                self.epoch if self.floor_after is None else self.floor_after,
            ),
            floor_after=None,
            starts=0,
            policy=None,
        )

    def returned(self, reason: str, *, to_none: bool = False) -> Self:
        """The version on probation failed it: the one before serves again, if any.

        The floor stays: nothing was committed, so this is no downgrade.

        Args:
            reason: for the operator, one sentence.
            to_none: the one before cannot serve either.
        """
        return replace(
            self,
            state=self._after(Event.RETURNED),
            active=None if to_none else self.previous,
            epoch=0 if to_none else self.previous_epoch,
            previous=None,
            previous_epoch=0,
            staged=self.active,
            staged_epoch=self.epoch,
            reason=reason[:MAX_REASON],
            floor_after=None,
            starts=0,
            policy=None,
        )

    def stranded(self, reason: str) -> Self:
        """Nothing is left to return to: what was on probation serves until a newer comes.

        It is not proved, so the floor stays.
        """
        return replace(
            self,
            state=self._after(Event.STRANDED),
            previous=None,
            previous_epoch=0,
            reason=reason[:MAX_REASON],
            floor_after=None,
            starts=0,
            policy=None,
        )

    def refused(
        self,
        reason: str,
        version: str | None = None,
        generation: int | None = None,
        epoch: int | None = None,
    ) -> Self:
        """The staged version will not serve; the active one goes on.

        Args:
            reason: for the operator, one sentence.
            version: when none was staged, the version that was refused.
            generation: when none was staged, that of the desired state.
            epoch: when none was staged, the desired one.
        """
        refused = version or self.staged
        # A previous version that would not serve again is no way back.
        lost = refused == self.previous
        return replace(
            self,
            state=self._after(Event.REFUSED),
            staged=refused,
            staged_epoch=self.staged_epoch if epoch is None else epoch,
            previous=None if lost else self.previous,
            previous_epoch=0 if lost else self.previous_epoch,
            reason=reason[:MAX_REASON],
            generation=self.generation if generation is None else generation,
        )

    def went_back(
        self, generation: int, epoch: int | None = None, *, way_back: bool = False
    ) -> Self:
        """The previous version serves again, as desired; the two have changed places.

        It was committed here once, so it needs no probation. A version that was on
        probation is no way back.

        Args:
            generation: of the desired state.
            epoch: the desired one.
            way_back: it was signed as the way back from the one before.
        """
        state = self._after(Event.WENT_BACK)
        if self.previous is None:
            raise WrongMove(f"model {self.model!r} has no previous version")
        unproved = self.state is State.PROBATION
        now = self.previous_epoch if epoch is None else epoch
        return replace(
            self,
            state=state,
            active=self.previous,
            epoch=now,
            floor=max(self.floor, self._floor_by(now, way_back=way_back)),
            floor_after=None,
            previous=None if unproved else self.active,
            previous_epoch=0 if unproved else self.epoch,
            staged=None,
            staged_epoch=0,
            reason=None,
            generation=generation,
            starts=0,
            policy=None,
        )

    def adopted(
        self,
        generation: int,
        epoch: int | None = None,
        policy: UpdatePolicy | None = None,
        *,
        way_back: bool = False,
    ) -> Self:
        """The active version is the desired one: generation, epoch and policy are new.

        Args:
            generation: of the desired state.
            epoch: the desired one; a new one raises the floor, once all is proved.
            policy: of a probation that goes on.
            way_back: the epoch was signed as the way back from the one before.
        """
        proved = self.state is not State.PROBATION
        now = self.epoch if epoch is None else epoch
        floor = self.floor_after
        seen = self.seen
        if now != self.epoch:
            floor = self._floor_by(now, way_back=way_back)
            seen = seen if way_back else max(seen, now)
        elif proved and seen != now and seen >= now - 1:
            # A way back that was taken in advance; what it leads back from, or something
            # newer, came since.
            floor = now
        return replace(
            self,
            state=self._after(Event.ADOPTED),
            staged=None,
            staged_epoch=0,
            reason=None,
            generation=generation,
            epoch=now,
            floor=max(self.floor, floor or 0) if proved else self.floor,
            floor_after=None if proved else floor,
            seen=seen,
            policy=None if proved else policy or self.policy,
        )

    def turned_back(self, generation: int) -> Self:
        """The generation answered so far was none; one as old as this is heard again."""
        return replace(self, generation=max(0, generation - 1))

    def interrupted(self) -> Self:
        """The agent stopped: an unfinished pull or trial is forgotten."""
        state = self._after(Event.INTERRUPTED)
        if state is self.state:
            return self
        return replace(self, state=state, staged=None, staged_epoch=0)

    def _floor_by(self, epoch: int, *, way_back: bool) -> int:
        """What an epoch bars once it is proved: all epochs below this.

        Whoever may say what is desired may desire a way back at any time: it was signed
        in advance. So it bars the version that it leads back from only where that
        version was; elsewhere it would keep away what was rightly published.
        """
        left = epoch - 1
        if not way_back or self.epoch == left or max(self.seen, self.floor) >= left:
            return epoch
        return left

    def _after(self, event: Event) -> State:
        return after(self.state, event, self.model)

    def report(self) -> SlotReport:
        """What the fleet hears of these slots."""
        told = SlotReport.model_fields
        return SlotReport(
            **{name: value for name, value in self.shown().items() if name in told}
        )

    def shown(self) -> dict[str, Any]:
        """As JSON would hold it."""
        policy = None if self.policy is None else self.policy.model_dump()
        return {**asdict(self), "state": self.state.value, "policy": policy}

    def to_json(self) -> str:
        """These slots as they are stored."""
        return json.dumps(self.shown(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read stored slots, those of an earlier release too.

        Raises:
            BadSlots: it is not JSON, or a field is missing or wrong.
        """
        try:
            read = _Stored.model_validate_json(text)
        except ValidationError as error:
            raise BadSlots(f"stored slots: {explain(error)}") from error
        slots = cls(**{each.name: getattr(read, each.name) for each in fields(cls)})
        if "seen" in read.model_fields_set:
            return slots
        # An earlier release did not note it: what returned has served too.
        came_back = slots.staged_epoch if slots.state is State.RETURNED else 0
        return replace(slots, seen=max(slots.floor, slots.epoch, came_back))


class _Stored(Message):
    """The file of one model's slots; what an earlier release did not know has a default."""

    model: Id
    active: ModelVersion | None = None
    previous: ModelVersion | None = None
    staged: ModelVersion | None = None
    state: State = State.IDLE
    reason: ShortText | None = None
    generation: MonotonicCount = 0
    epoch: MonotonicCount = 0
    previous_epoch: MonotonicCount = 0
    staged_epoch: MonotonicCount = 0
    floor: MonotonicCount = 0
    floor_after: MonotonicCount | None = None
    seen: MonotonicCount = 0
    starts: MonotonicCount = 0
    policy: UpdatePolicy | None = None
