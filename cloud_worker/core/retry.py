"""Decide what becomes of the requests of a batch that failed."""

from __future__ import annotations

from enum import Enum, auto


class Verdict(Enum):
    """What to do with each request of a failed batch."""

    AGAIN = auto()
    """Nothing speaks against it: run it as before."""
    APART = auto()
    """Run each by itself, so that the culprit stands alone."""
    FAILED = auto()
    """It failed by itself: answer so."""


def verdict(*, suspect: bool, crashed: bool, apart: bool, requests: int) -> Verdict:
    """Judge a failed batch.

    Args:
        suspect: whether the batch may be at fault; one that was only queued behind
            another when the process died is not.
        crashed: whether the model process died or hung, rather than give an error.
        apart: whether its one request was already being retried by itself.
        requests: how many requests it held.
    """
    if not suspect:
        return Verdict.AGAIN
    # An error repeats; a death may have come from outside, so once more.
    if apart or (requests == 1 and not crashed):
        return Verdict.FAILED
    return Verdict.APART
