"""The lowest threshold at which a cascade is not wrong too often. Spills no more than that.

**With confidence**: learn then test (Angelopoulos, Bates, Candès, Jordan & Lei, "Learn
then Test", 2021), by fixed-sequence testing. From the threshold that spills everything
downwards, each threshold is tested for "the risk is over the target" at level 1 - c; the
first that is not rejected ends the walk, and the one before it is taken. Every real
threshold is in that walk, not only a grid: the first bad one is a property of the world
and not of the data, and a wrong result needs a test to fail just there. So neither a
grid, nor a correction for many tests, nor a risk that rises steadily is needed.

The loss of one example against the cloud is +1 (kept, the edge wrong, the cloud right),
-1 (kept, the other way round) or 0, and its mean is tested exactly by the score of a
matched pair (`paired`): at 5 % it stops 1.65 standard errors from the target, as if the
rate of differences were known. What was tried and stops earlier: the same sum, exact, but
not divided by its standard error (Berger & Boos, "P Values Maximized Over a Confidence
Set", JASA 1994); bounds for any loss in [-1, 1], betting among them (Waudby-Smith &
Ramdas, 2023; Hoeffding and Bentkus); and McNemar's test, exact given the number of
differences, but weak where nearly all of them go one way. The error of the cascade is 0
or 1 an example, and the binomial tail is its exact p-value.

Limits by class are tested beside the whole at each threshold, and all must be
rejected. The first threshold bad for anyone is bad for some one class, whose own test
fails there with the level's chance: an intersection-union test (Berger, 1982), which
needs no correction for the number of classes. Classes with few examples stop the walk
early, which is the price.

**On average**: conformal risk control (Angelopoulos, Bates, Fisch, Lei & Schuster, 2022),
which needs a loss that only falls as the threshold rises. The loss here is "kept, the
edge wrong, the cloud right", which is never less than the excess.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cascade.budget import threshold_for_spill
from cascade.paired import critical_score, excess_score
from cascade.tails import at_most
from cascade.targets import (
    Calibrated,
    Examples,
    MaxError,
    MaxExcess,
    MaxSpill,
    Unsupported,
    rounded_up,
)

# A search for how much data would do ends here.
_MOST_EXAMPLES: Final = 100_000_000

Counts: TypeAlias = NDArray[np.int64]
RiskTarget: TypeAlias = MaxExcess | MaxError
# Of counts of excess and of differences: which fail to show that the limit is kept.
Fails: TypeAlias = Callable[[Counts, Counts], NDArray[np.bool_]]


def threshold_for_risk(
    examples: Examples,
    target: RiskTarget,
    *,
    spill: MaxSpill | None = None,
    fresh: int | None = None,
) -> Calibrated | Unsupported:
    """The lowest threshold that keeps the target, within a share spilled.

    Args:
        examples: held out from both models.
        target: what is promised.
        spill: also keep to this share. Both promises hold together but for the sum
            of what each may miss.
        fresh: promise the target of what is realised on so many fresh requests, and
            not of the long run. A trial on data held out measures the former, whose own
            chance is then part of the promise: it is counted as calibrating on
            n·fresh/(n + fresh) examples, which varies as both do together. This part
            is not exact; the tests try it.

    Returns:
        The threshold, or why there is none, how much data would do, and the nearest
        target that can be met. A threshold that spills everything is none. A cloud
        model worse than the edge model is refused.

    Raises:
        ValueError: limits by class without the classes, or on average.
    """
    walk = _walk(examples, target, fresh)
    if not (examples.confidence > -np.inf).any():
        return Unsupported(target, "every answer of the edge model is unusable")
    if isinstance(target, MaxExcess):
        edge, cloud = examples.edge_right.mean(), examples.cloud_right.mean()
        if cloud < edge:
            return Unsupported(
                target,
                f"the cloud model is worse than the edge model ({cloud:.2%} right for "
                f"{edge:.2%} of {len(examples)} examples), so there is nothing to "
                "gain by asking it",
            )
    most = 1.0
    if spill is not None:
        budget = threshold_for_spill(examples.confidence, spill, fresh)
        most = budget.spilled if isinstance(budget, Calibrated) else 0.0
    found = walk.lowest(target)
    if found is not None and found.spilled <= most:
        return found
    return Unsupported(
        target,
        walk.why_not(target, found, most),
        walk.examples_needed(target, most),
        walk.nearest(target, most),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Path:
    """What has been kept after each step down, for all examples or for one class.

    State 0 spills everything, state j keeps what reaches `thresholds[j]`; [states].
    `excess`: where only the cloud is right less where only the edge is. `differ`: where
    one of them is. `regret`: where only the cloud is.
    """

    examples: int
    cloud_wrong: int
    thresholds: NDArray[np.float64]
    spilled: NDArray[np.float64]
    excess: Counts
    differ: Counts
    regret: Counts


def _path(examples: Examples, which: NDArray[np.bool_]) -> _Path:
    sure = examples.confidence[which]
    edge, cloud = examples.edge_right[which], examples.cloud_right[which]
    order = np.argsort(-sure, kind="stable")
    order = order[sure[order] > -np.inf]  # what is unusable is never kept
    ordered = sure[order]
    # Equal confidences are kept or spilled together.
    ends = np.flatnonzero(np.append(ordered, -np.inf)[1:] < ordered)

    def counted(flags: NDArray[np.bool_]) -> Counts:
        return np.concatenate(([0], np.cumsum(flags[order])[ends])).astype(np.int64)

    regrets, gains = counted(cloud & ~edge), counted(edge & ~cloud)
    return _Path(
        len(sure),
        int(np.count_nonzero(~cloud)),
        np.concatenate(([np.inf], ordered[ends])),
        (len(sure) - np.concatenate(([0], ends + 1))) / len(sure),
        regrets - gains,
        regrets + gains,
        regrets,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Walk:
    """The walk down the thresholds: of all examples, and of those of each class."""

    whole: _Path
    classes: tuple[_Path, ...]
    fresh: int | None

    def lowest(self, target: RiskTarget) -> Calibrated | None:
        """The lowest threshold that passes; None when none does that keeps anything."""
        threshold = -math.inf
        for path, limit in self._limited(target):
            passed = self._passed(path, target, limit)
            if passed == len(path.thresholds) - 1:
                continue  # nothing of it ever is over
            if passed < 1:
                return None
            threshold = max(threshold, float(path.thresholds[passed]))
        state = int(np.count_nonzero(self.whole.thresholds >= threshold)) - 1
        count = int(self.whole.excess[state])
        if isinstance(target, MaxError):
            count += self.whole.cloud_wrong
        return Calibrated(
            threshold,
            target,
            float(self.whole.spilled[state]),
            count / self.whole.examples,
            self.whole.examples,
        )

    def why_not(self, target: RiskTarget, found: Calibrated | None, most: float) -> str:
        """Why there is no threshold, for people."""
        if found is not None:
            return f"it takes {found.spilled:.1%} spilled, and {most:.1%} may be"
        for path, limit in self._limited(target):
            if len(path.thresholds) == 1:
                continue  # nothing of it can be kept
            best = self._counts(path, target, int(path.excess[1:].argmin()) + 1)[0]
            if best > limit * path.examples:
                whom = "all" if path is self.whole else "a class"
                return (
                    f"the best any threshold does on {path.examples} examples of "
                    f"{whom} is {best / path.examples:.2%}"
                )
        fewest = min((path.examples for path in self.classes), default=0)
        rarest = f", {fewest} of them of the rarest class," if self.classes else ""
        return f"{self.whole.examples} examples{rarest} are too few to show it"

    def examples_needed(self, target: RiskTarget, most: float) -> int | None:
        """How many would do if rates stay as they are; None when none would."""
        worst = 0
        for path, limit in self._limited(target):
            # By the whole's share spilled: that is what is limited.
            lowest = self.whole.thresholds[self.whole.spilled <= most][:1]
            states = np.flatnonzero(path.thresholds <= lowest.min(initial=np.inf))
            states = states[states > 0]
            if not states.size:
                return None
            state = int(states[path.excess[states].argmin()])
            needed = self._path_needs(path, target, limit, state)
            if needed is None:
                return None
            worst = max(worst, math.ceil(needed * self.whole.examples / path.examples))
        return worst

    def nearest(self, target: RiskTarget, most: float) -> RiskTarget | None:
        """The nearest target of its kind that is met; None when none under 1 is."""

        def met(factor: float) -> bool:
            found = self.lowest(_scaled(target, factor))
            return found is not None and found.spilled <= most

        whole = target.excess if isinstance(target, MaxExcess) else target.error
        low, high = 1.0, 0.99 / max(whole, target.per_class or 0.0)
        if high <= low or not met(high):
            return None
        while high / low > 1.01:
            middle = math.sqrt(low * high)
            low, high = (low, middle) if met(middle) else (middle, high)
        return _scaled(target, high, rounded_up)

    def _limited(self, target: RiskTarget) -> Iterator[tuple[_Path, float]]:
        yield (
            self.whole,
            target.excess if isinstance(target, MaxExcess) else target.error,
        )
        for path in self.classes:
            if target.per_class is not None:
                yield path, target.per_class

    def _passed(self, path: _Path, target: RiskTarget, limit: float) -> int:
        """The last state before the first that fails; -1 when the very first does."""
        if target.confidence is None:
            # Risk control on average: this loss only grows on the way down.
            passing = path.regret + 1 <= limit * (path.examples + 1)
            return int(np.count_nonzero(passing)) - 1
        fails = _test(target, limit, path.examples, self.fresh)
        extra = path.cloud_wrong if isinstance(target, MaxError) else 0
        failed = np.flatnonzero(fails(path.excess + extra, path.differ))
        return int(failed[0]) - 1 if failed.size else len(path.thresholds) - 1

    def _counts(self, path: _Path, target: RiskTarget, state: int) -> tuple[int, int]:
        """What the target limits, and how often the two differ, at a state."""
        if target.confidence is None:
            return int(path.regret[state]), 0
        extra = path.cloud_wrong if isinstance(target, MaxError) else 0
        return int(path.excess[state]) + extra, int(path.differ[state])

    def _path_needs(
        self, path: _Path, target: RiskTarget, limit: float, state: int
    ) -> int | None:
        """How many examples of this path would pass at its rates in a state."""
        n = path.examples
        count, differ = self._counts(path, target, state)
        if target.confidence is None:
            room = limit - count / n
            return math.ceil((1 - limit) / room) if room > 0 else None

        # The walk begins where everything is spilled, and that has to pass too.
        first = self._counts(path, target, 0)
        ends = np.array([first, (count, differ)])

        def passes(examples: int) -> bool:
            fails = _test(target, limit, examples, self.fresh)
            counts, differs = np.ceil(ends * (examples / n)).T
            return not fails(counts, differs).any()

        high = 1
        while not passes(high):
            high *= 2
            if max(count, first[0]) >= limit * n or high > _MOST_EXAMPLES:
                return None
        low = high // 2
        while high - low > max(1, low // 100):
            middle = (low + high) // 2
            low, high = (low, middle) if passes(middle) else (middle, high)
        return high


def _walk(examples: Examples, target: RiskTarget, fresh: int | None) -> _Walk:
    everyone = np.ones(len(examples), np.bool_)
    classes: tuple[_Path, ...] = ()
    if target.per_class is not None:
        if examples.classes is None:
            raise ValueError("a limit by class needs the class of each example")
        if target.confidence is None:
            raise ValueError("a limit by class needs a confidence")
        classes = tuple(
            _path(examples, examples.classes == each)
            for each in np.unique(examples.classes)
        )
    return _Walk(_path(examples, everyone), classes, fresh)


def _test(target: RiskTarget, limit: float, examples: int, fresh: int | None) -> Fails:
    """The test of a limit with so many examples, counted as so many trials."""
    level = 1.0 - (target.confidence or 0.0)
    trials = examples
    if fresh is not None:
        trials = max(1, examples * fresh // (examples + fresh))
    part = trials / examples
    if isinstance(target, MaxError):
        fewest = _first_over(trials, limit, level)
        return lambda count, _differ: np.ceil(count * part) >= fewest
    last = critical_score(trials, limit, level)
    return lambda count, differ: (
        excess_score(count * part, differ * part, trials, limit) > last
    )


def _first_over(trials: int, limit: float, level: float) -> int:
    """The fewest errors that do not show a rate of errors under the limit."""
    low, high = 0, trials
    while low < high:
        middle = (low + high) // 2
        if at_most(middle, trials, limit) > level:
            high = middle
        else:
            low = middle + 1
    return low


def _scaled(
    target: RiskTarget, factor: float, as_said: Callable[[float], float] = float
) -> RiskTarget:
    each = target.per_class and as_said(target.per_class * factor)
    if isinstance(target, MaxExcess):
        whole = as_said(target.excess * factor)
        return replace(target, excess=whole, per_class=each)
    return replace(target, error=as_said(target.error * factor), per_class=each)
