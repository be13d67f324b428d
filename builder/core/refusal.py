"""The one error of a build that its user can mend."""

from __future__ import annotations


class BuildRefused(ValueError):
    """A build cannot go on; says what is wrong with what, and what to do about it."""
