"""When requests arrive. Open loop: the schedule never looks at what became of them.

Constant, Poisson and bursts are one thing: arrivals of rate 1, evenly or exponentially
spaced, on a time axis that is stretched so that the phases have their rates.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from random import Random
from typing import Protocol, Self, runtime_checkable

from typing_extensions import override

from overspill.load.quantities import BadQuantity, duration_s, rate_per_s


class Spacing(StrEnum):
    """How arrivals of one rate are spaced."""

    CONSTANT = "constant"
    POISSON = "poisson"


@runtime_checkable
class Arrivals(Protocol):
    """A schedule."""

    @property
    def rate_per_s(self) -> float:
        """Arrivals a second, on average."""
        ...

    def offsets_s(self, random: Random) -> Iterator[float]:
        """Seconds from the start of each arrival, in order."""
        ...

    def scaled(self, factor: float) -> Self:
        """The same pattern with `factor` times the rate."""
        ...


@dataclass(frozen=True, slots=True)
class Phase:
    """A rate that holds for a while; the phases of a schedule repeat."""

    rate_per_s: float
    for_s: float


@dataclass(frozen=True, slots=True)
class Steady(Arrivals):
    """Phases of one rate each, in turn and for ever."""

    phases: tuple[Phase, ...]
    spacing: Spacing = Spacing.POISSON

    @classmethod
    def at(cls, rate_per_s: float, spacing: Spacing = Spacing.POISSON) -> Self:
        """One rate all the time.

        Raises:
            BadQuantity: the rate is not over 0.
        """
        return cls((Phase(rate_per_s, 1.0),), spacing)

    def __post_init__(self) -> None:
        if not self._in_a_round() > 0:
            raise BadQuantity("a rate is over 0: nothing would ever arrive")

    @property
    @override
    def rate_per_s(self) -> float:
        return self._in_a_round() / sum(phase.for_s for phase in self.phases)

    @override
    def offsets_s(self, random: Random) -> Iterator[float]:
        units = self._units(random)
        began_s = passed = 0.0
        unit = next(units)
        for phase in itertools.cycle(self.phases):
            until = passed + phase.rate_per_s * phase.for_s
            while unit < until:
                yield began_s + (unit - passed) / phase.rate_per_s
                unit = next(units)
            passed, began_s = until, began_s + phase.for_s

    @override
    def scaled(self, factor: float) -> Self:
        faster = (Phase(each.rate_per_s * factor, each.for_s) for each in self.phases)
        return replace(self, phases=tuple(faster))

    def _in_a_round(self) -> float:
        return sum(phase.rate_per_s * phase.for_s for phase in self.phases)

    def _units(self, random: Random) -> Iterator[float]:
        if self.spacing is Spacing.CONSTANT:
            yield from map(float, itertools.count())
        at = 0.0
        while True:
            # 1 − u is in (0, 1], so the logarithm is finite.
            at -= math.log(1.0 - random.random())
            yield at


@dataclass(frozen=True, slots=True)
class Replay(Arrivals):
    """The arrivals of a trace, once.

    Attributes:
        at_s: seconds from the start, ascending; at least one.
        speed: how many times as fast as they were recorded.
    """

    at_s: tuple[float, ...]
    speed: float = 1.0

    @property
    @override
    def rate_per_s(self) -> float:
        length_s = self.at_s[-1] - self.at_s[0]
        if length_s <= 0:
            return len(self.at_s) * self.speed
        return (len(self.at_s) - 1) / length_s * self.speed

    @override
    def offsets_s(self, random: Random) -> Iterator[float]:
        for at_s in self.at_s:
            yield at_s / self.speed

    @override
    def scaled(self, factor: float) -> Self:
        return replace(self, speed=self.speed * factor)


def read_bursts(text: str) -> tuple[Phase, ...]:
    """Read `200/s:1s,20/s:4s`: a second at 200 a second, four at 20, and again.

    Raises:
        BadQuantity: it is written in another way.
    """
    phases = []
    for part in text.split(","):
        rate, colon, length = part.partition(":")
        if not colon:
            raise BadQuantity(f"{part!r} is no burst: write 200/s:1s,20/s:4s")
        phases.append(Phase(rate_per_s(rate), duration_s(length)))
    return tuple(phases)
