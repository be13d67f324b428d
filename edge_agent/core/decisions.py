"""Decide what brings a model's slots to the desired version. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from broker.messages import DesiredModel
from edge_agent.core.slots import Slots, State


@dataclass(frozen=True, slots=True)
class Nothing:
    """The slots are as desired, or as near to it as this generation will come."""


@dataclass(frozen=True, slots=True)
class Pull:
    """Pull this version, try it and swap; drop any other pull of this model.

    Attributes:
        version: to be pulled.
        generation: of the desired state.
        epoch: in which it must be signed.
        shadow: it only runs beside the active version.
    """

    version: str
    generation: int
    epoch: int = 0
    shadow: bool = False


@dataclass(frozen=True, slots=True)
class GoBack:
    """Swap to the previous version, which is on the disk already."""

    version: str
    generation: int
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Adopt:
    """The active version is the desired one: record the generation and report it."""

    generation: int
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Refuse:
    """The wish must not be followed; say why."""

    version: str
    generation: int
    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class Return:
    """End the probation: what serves is not proved, and another version is desired."""

    reason: str


Decision = Nothing | Pull | GoBack | Adopt | Refuse | Return


def decide(desired: DesiredModel | None, slots: Slots) -> Decision:
    """What brings the slots to the desired version.

    A version that was refused or has returned is not tried again in the same
    generation; a newer generation tries it once more. An older generation than the
    slots' is a late message and changes nothing. A model that is no longer desired
    goes on serving.
    """
    if desired is None or desired.generation < slots.generation:
        return Nothing()
    if slots.state is State.TESTING or _tried(desired, slots):
        # A trial takes seconds; what is desired is looked at again when it ends.
        return Nothing()
    if slots.state is State.PROBATION:
        return _on_probation(desired, slots)
    if desired.version == slots.active and desired.epoch >= slots.floor:
        return _settle(desired, slots)
    return _take(desired, slots)


def _take(desired: DesiredModel, slots: Slots) -> Refuse | GoBack | Pull:
    version, generation, epoch = desired.version, desired.generation, desired.epoch
    if epoch < slots.floor:
        return Refuse(version, generation, epoch, _below_floor(desired, slots))
    if version == slots.previous and not desired.shadow:
        return GoBack(version, generation, epoch)
    return Pull(version, generation, epoch, shadow=desired.shadow)


_TRIED: Final = (State.PULLING, State.REFUSED, State.RETURNED, State.SHADOW)


def _tried(desired: DesiredModel, slots: Slots) -> bool:
    """Whether this very wish is under way, is done, was refused or has returned."""
    if slots.state is State.SHADOW and not desired.shadow:
        return False
    return slots.state in _TRIED and (
        (desired.version, desired.generation) == (slots.staged, slots.generation)
    )


def _settle(desired: DesiredModel, slots: Slots) -> Nothing | Adopt:
    known = (slots.staged, slots.generation, slots.epoch)
    if known == (None, desired.generation, desired.epoch):
        return Nothing()
    return Adopt(desired.generation, desired.epoch)


def _on_probation(desired: DesiredModel, slots: Slots) -> Decision:
    if desired.version == slots.active and not desired.shadow:
        return _settle(desired, slots)
    if desired.epoch < slots.floor:
        return Nothing()  # It is refused once the probation has ended.
    if desired.version == slots.previous and not desired.shadow:
        return GoBack(desired.version, desired.generation, desired.epoch)
    return Return(f"not proved yet, and {desired.version} is desired instead")


def _below_floor(desired: DesiredModel, slots: Slots) -> str:
    return (
        f"{desired.model} {desired.version} is desired in epoch {desired.epoch}, but "
        f"nothing below epoch {slots.floor} is taken here any more: publish it under a new version"
    )
