"""How a build tells what it does; the command draws it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Who hears of a build's progress."""

    def begin(self, what: str) -> None:
        """A step begins."""

    def advance(self, done: int, of: int) -> None:
        """So much of the step is done."""

    def note(self, what: str) -> None:
        """Something that a person should know."""


class Silent:
    """Hears and says nothing."""

    def begin(self, what: str) -> None:
        """Say nothing."""

    def advance(self, done: int, of: int) -> None:
        """Say nothing."""

    def note(self, what: str) -> None:
        """Say nothing."""
