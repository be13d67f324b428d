"""Which deliveries of a channel are done, and the fewest acknowledgements to say so.

A broker writes each acknowledgement to a quorum queue's log. One that covers all up to
the highest contiguous finished tag costs as much as one for a single delivery.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Due:
    """What to tell the broker: all up to `up_to` (0: none), and each of `alone`."""

    up_to: int
    alone: tuple[int, ...]


class Acks:
    """The ledger of one channel, whose delivery tags count from 1."""

    def __init__(self) -> None:
        # Every tag up to `_floor` is settled; of those beyond, `_beyond` are.
        self._floor = 0
        self._beyond: set[int] = set()
        self._owed: list[int] = []

    @property
    def floor(self) -> int:
        """Every delivery up to this tag is done."""
        return self._floor

    @property
    def owed(self) -> int:
        """How many acknowledgements the broker has not been told."""
        return len(self._owed)

    def finish(self, tag: int) -> None:
        """A delivery is done: an acknowledgement is owed."""
        self._owed.append(tag)
        self._settle(tag)

    def settled(self, tag: int) -> None:
        """The broker has been told by other means, as by a reject."""
        self._settle(tag)

    def take(self) -> Due:
        """Everything that is owed, which is then no longer."""
        owed, self._owed = self._owed, []
        up_to = max((tag for tag in owed if tag <= self._floor), default=0)
        return Due(up_to, tuple(sorted(tag for tag in owed if tag > self._floor)))

    def _settle(self, tag: int) -> None:
        self._beyond.add(tag)
        while self._floor + 1 in self._beyond:
            self._floor += 1
            self._beyond.remove(self._floor)
