"""What happens to a request, told as it happens to whoever wants to write it down.

The programs call `note` at each boundary that a promise depends on; by default nobody
listens. The fault tests listen: they write histories, and they kill the process there.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Protocol


class Event(StrEnum):
    """A boundary that a request crosses. `…ING` comes before the effect."""

    ACCEPTING = "accepting"
    """The agent is about to commit it to the outbox."""
    ACCEPTED = "accepted"
    """It is committed; the device has not been told yet."""
    SENDING = "sending"
    """The agent is about to publish it to the cloud; `detail` is empty."""
    SENT = "sent"
    """The cloud's broker has acknowledged the publish."""
    SEEN = "seen"
    """A worker has read it from its queue."""
    PUBLISHED = "published"
    """The broker has confirmed a worker's result; `detail` is its status."""
    ENDING = "ending"
    """The agent is about to commit an outcome; `detail` names it."""
    ENDED = "ended"
    """The outcome is recorded, and is the first of its id; `detail` names it."""
    TELLING = "telling"
    """The agent is about to publish the answer to the device."""
    TOLD = "told"
    """The device's broker has acknowledged the answer; it is not marked so yet."""
    MARKED = "marked"
    """The outbox knows that the device was told."""


class Journal(Protocol):
    """Whoever wants to know. Must not block and must not raise."""

    def note(self, event: Event, device: str, id_: str, detail: str = "") -> None:
        """Something happened to the request `id_` of `device`."""
        ...


class _Nobody:
    def note(self, event: Event, device: str, id_: str, detail: str = "") -> None:
        """Write nothing down."""


NOBODY: Final[Journal] = _Nobody()
