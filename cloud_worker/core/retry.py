"""Decide what becomes of the requests of a batch that failed.

An error repeats, so the batch is halved, and the half that fails again, until the
culprit stands alone: one among n costs 2·log2(n) + 1 runs. A death costs the seconds
in which the model process comes back, so there the halving ends early: who was seen
in two of them runs alone, and one culprit costs three deaths at most.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress
from operator import not_
from typing import Final, Generic, TypeVar

CRASHES_ALONE: Final = 2
"""Seen in so many deaths of the model process, a request runs alone, and is proved
guilty by the next it has alone; the first may have come from outside."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Again(Generic[T]):
    """Nothing speaks against these: run them as before."""

    batch: tuple[T, ...]


@dataclass(frozen=True, slots=True)
class Apart(Generic[T]):
    """Run each of these parts as a batch of its own."""

    parts: tuple[tuple[T, ...], ...]


@dataclass(frozen=True, slots=True)
class Guilty(Generic[T]):
    """It failed by itself: answer so."""

    culprit: T


Verdict = Again[T] | Apart[T] | Guilty[T]


def verdict(
    batch: Sequence[T],
    *,
    suspect: bool,
    crashed: bool,
    crashes: Callable[[T], int] = lambda _: 0,
) -> Verdict[T]:
    """Judge a failed batch.

    Args:
        batch: its requests, at least one.
        suspect: whether the batch may be at fault; one that was only queued behind
            another when the process died is not.
        crashed: whether the model process died or hung, rather than give an error.
        crashes: in how many deaths a request was seen, this one included.
    """
    if not suspect:
        return Again(tuple(batch))
    if len(batch) > 1:
        again = [crashed and crashes(each) >= CRASHES_ALONE for each in batch]
        alone = tuple((each,) for each in compress(batch, again))
        others = tuple(compress(batch, map(not_, again)))
        return Apart((*_halves(others), *alone))
    (only,) = batch
    if crashed and crashes(only) < CRASHES_ALONE:
        return Apart(((only,),))
    return Guilty(only)


def _halves(several: Sequence[T]) -> tuple[tuple[T, ...], ...]:
    middle = (len(several) + 1) // 2
    halves = tuple(several[:middle]), tuple(several[middle:])
    return tuple(half for half in halves if half)
