"""What may be done to a version; `versions.py` decides it and a loop carries it out."""

from __future__ import annotations

from dataclasses import dataclass

from cloud_worker.core.policy import Shares
from cloud_worker.core.shelf import Key


@dataclass(frozen=True, slots=True)
class Load:
    """Load this version, in the background, and say how it went."""

    key: Key
    files: str


@dataclass(frozen=True, slots=True)
class Unload:
    """Take this version out of the memory; a request for it brings it back."""

    key: Key
    why: str


@dataclass(frozen=True, slots=True)
class Retire:
    """Take this version out of the memory and forget it: it answers no more."""

    key: Key
    why: str


@dataclass(frozen=True, slots=True)
class Route:
    """From now on these versions answer; none: the model is served no more."""

    name: str
    shares: Shares


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Answer those that wait for this version: it will not come."""

    key: Key
    why: str


Step = Load | Unload | Retire | Route | GiveUp
