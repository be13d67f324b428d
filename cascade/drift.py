"""Whether scores still come from where the threshold was set. A test that may run for ever.

Each score falls into a bin of the scores calibrated on, and its rank among all seen so far
(calibration included, equals put in random order) is a p-value. While scores are
exchangeable with those calibrated on, such p-values are independent and uniform, exactly
(Vovk, Nouretdinov & Gammerman, "Testing Exchangeability On-Line", ICML 2003). Bets
against that are fair games: money that begins at 1 reaches 1/a with a chance of a at
most, ever (Ville). So an alarm is false with a chance of `false_alarm` over the whole
life of the test, however long, and not a chance each time one looks.

Ranks against the calibration data alone would not do: a few thousand scores are not the
distribution itself, and a hundred thousand observations would find the difference.

The bets are that p-values lean to an end, or to the middle or both ends. Money moves a
little between them at each step (the Simple Jumper: Vovk, "Testing Randomness Online",
Statistical Science 2021). A fraction of the money is staked anew as time passes, ever
less of it, so that what was lost in a quiet year does not have to be won back first
(e-detectors: Shin, Ramdas & Rinaldo, 2022).

Quiet means: no proof of change. Days differ from nights, and neighbours in a stream are
alike: neither is exchangeable, and given enough of it the test rightly says so.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

MAX_BINS: Final = 64
# What each bet pays is 1 + stake · shape(p), which is never negative and 1 on average.
_LEANS: Final = (0.9, -0.9, 0.4, -0.4)
_CURVES: Final = (0.9, -0.9, 0.4, -0.4)
_BETS: Final = len(_LEANS) + len(_CURVES)
_JUMP: Final = 0.002


@dataclass(frozen=True, slots=True)
class Drift:
    """What the test has found.

    Attributes:
        alarm: the scores have changed. Stays until the test is begun anew.
        evidence: the money now; 1 / false_alarm at an alarm. Under 1 is none.
        observed: how many scores.
        alarmed_at: after how many scores; None when there was no alarm.
        lower: whether recent scores lean to lower than they were, for people.
    """

    alarm: bool
    evidence: float
    observed: int
    alarmed_at: int | None
    lower: bool


class DriftTest:
    """The running test. Each score costs a few microseconds; memory is fixed."""

    def __init__(
        self,
        edges: Sequence[float],
        counts: Sequence[int],
        false_alarm: float = 0.01,
    ) -> None:
        """Begin with what `calibrated` gives, or go on with `from_state`.

        Args:
            edges: rising, finite; bin i holds scores from edge i - 1 to under edge i.
            counts: one more than `edges`, of the calibration data.
            false_alarm: the chance, over the whole life of the test, that it
                alarms without a change.

        Raises:
            ValueError: the edges do not rise, counts do not match, or false_alarm is
                not above 0 and under 1.
        """
        rising = all(a < b for a, b in pairwise(edges))
        if not rising or not all(math.isfinite(each) for each in edges):
            raise ValueError("the edges of bins are finite and rise")
        if len(counts) != len(edges) + 1 or min(counts) < 0 or len(counts) > MAX_BINS:
            raise ValueError(
                f"{len(edges)} edges need {len(edges) + 1} counts, {MAX_BINS} at most"
            )
        if not 0 < false_alarm < 1:
            raise ValueError(f"a chance is above 0 and under 1, got {false_alarm}")
        self._edges = [float(each) for each in edges]
        self._counts = [int(each) for each in counts]
        self._total = sum(self._counts)
        self._false_alarm = false_alarm
        self._observed = 0
        self._alarmed_at: int | None = None
        # Nothing is staked at first: the stakes of all times add up to 1.
        self._money = [0.0] * _BETS
        self._reserve = 1.0
        self._lean = 0.0

    @classmethod
    def calibrated(
        cls,
        scores: NDArray[np.floating[Any]],
        false_alarm: float = 0.01,
        bins: int = 32,
    ) -> DriftTest:
        """Begin from the scores of the calibration data.

        Args:
            scores: [n]; -inf where an answer is unusable.
            false_alarm: see the class.
            bins: of equal counts, where scores do not tie; 2..`MAX_BINS`.

        Raises:
            ValueError: no score, or one is NaN.
        """
        each = np.asarray(scores, np.float64)
        if not each.size or np.isnan(each).any():
            raise ValueError("drift is from scores, none of them NaN")
        finite = each[np.isfinite(each)]
        # Whatever is unusable has a bin of its own, under that of any number.
        edges = [-sys.float_info.max]
        if finite.size:
            shares = np.linspace(0, 1, max(2, min(bins, MAX_BINS - 1)))[:-1]
            edges += np.unique(np.quantile(finite, shares, method="higher")).tolist()
        counts = np.bincount(
            np.searchsorted(edges, each, side="right"), minlength=len(edges) + 1
        )
        return cls(edges, counts.tolist(), false_alarm)

    @property
    def found(self) -> Drift:
        """What the test has found so far."""
        return Drift(
            self._alarmed_at is not None,
            self._reserve + math.fsum(self._money),
            self._observed,
            self._alarmed_at,
            self._lean < 0,
        )

    def observe(self, score: float, chance: float) -> bool:
        """Take in the score of one request, in the order they come.

        Args:
            score: any; NaN counts as -inf, an unusable answer.
            chance: uniform in 0..1, drawn for this score: it orders equals.

        Returns:
            Whether this score raised the alarm.
        """
        at = 0 if math.isnan(score) else bisect_right(self._edges, score)
        counts = self._counts
        counts[at] += 1
        self._total += 1
        p = (sum(counts[:at]) + chance * counts[at]) / self._total
        self._observed += 1
        if self._alarmed_at is not None:
            return False
        return self._bet(2.0 * p - 1.0)

    def observe_all(self, scores: Iterable[float], chances: Iterable[float]) -> bool:
        """As `observe` for each in turn; whether the alarm was raised among them."""
        raised = False
        for score, chance in zip(scores, chances, strict=True):
            raised = self.observe(score, chance) or raised
        return raised

    def to_state(self) -> dict[str, Any]:
        """Everything, as numbers and lists that JSON and MessagePack can hold."""
        return {
            "edges": list(self._edges),
            "counts": list(self._counts),
            "false_alarm": self._false_alarm,
            "observed": self._observed,
            "alarmed_at": self._alarmed_at,
            "money": list(self._money),
            "reserve": self._reserve,
            "lean": self._lean,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> DriftTest:
        """Go on where `to_state` was.

        Raises:
            ValueError: the state is not of such a test.
        """
        try:
            test = cls(state["edges"], state["counts"], state["false_alarm"])
            alarmed_at = state["alarmed_at"]
            test._observed = int(state["observed"])
            test._alarmed_at = None if alarmed_at is None else int(alarmed_at)
            test._money = [float(each) for each in state["money"]]
            test._reserve = float(state["reserve"])
            test._lean = float(state["lean"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"not the state of a drift test: {error}") from error
        if len(test._money) != _BETS:
            raise ValueError(f"a drift test has {_BETS} bets, got {len(test._money)}")
        return test

    def _bet(self, x: float) -> bool:
        """Settle the bets on p = (x + 1) / 2, then ask whether it is an alarm."""
        self._lean += 0.01 * (x - self._lean)
        # Stakes of 1 / (t (t + 1)) add up to 1 over all time.
        stake = 1.0 / (self._observed * (self._observed + 1.0))
        self._reserve = 1.0 / (self._observed + 1.0)
        money = self._money
        shared = (stake + _JUMP * sum(money)) / _BETS
        kept = 1.0 - _JUMP
        curve = 1.5 * x * x - 0.5  # the second Legendre polynomial, 0 on average
        for i, lean in enumerate(_LEANS):
            money[i] = (kept * money[i] + shared) * (1.0 + lean * x)
        for i, bend in enumerate(_CURVES, len(_LEANS)):
            money[i] = (kept * money[i] + shared) * (1.0 + bend * curve)
        if self._reserve + sum(money) < 1.0 / self._false_alarm:
            return False
        self._alarmed_at = self._observed
        return True
