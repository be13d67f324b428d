"""Whether a promise is kept: what was realised, beside what was promised.

A request audited with probability q counts its amount of what is limited (1 where that
happened) 1/q times; all others count nothing. That is right on average, whoever is chosen (Horvitz & Thompson,
JASA 1952), and whatever the threshold did meanwhile.

The interval holds at all times at once with its confidence (a confidence sequence), so it
may be read each minute and spends nothing. It comes from bets: with X the count of a
request and m its mean given all before, 1 + rX has a mean of 1 + rm, at most exp(rm). So
the product of (1 + rX) exp(-rm) over all requests is a game that is not in the player's
favour, and reaches 1/a with a chance of a at most, ever (Ville). The rate r is mixed over
a few values; a negative one gives the upper end (betting: Waudby-Smith & Ramdas,
"Estimating Means of Bounded Random Variables by Betting", JRSS B 2023). Nothing is assumed
of how requests come: what is enclosed is the mean of their chances.

A running system knows no truth, only the cloud's answers. What it can hold a limit on
excess error against is `believed_excess`. Disagreement is a harder one: it is never less
than the excess, and may be several times as much, as it counts where the edge is right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

# The rates of the mixtures, in units of the least chance of being looked at. A request
# counts once over that chance at most, so the rate down has to stay under 1.
_RATES_UP: Final = tuple(16.0 * 0.5**k for k in range(20))
_RATES_DOWN: Final = tuple(0.9 * 0.5**k for k in range(16))


class Standing(StrEnum):
    """How a promise stands."""

    KEPT = "kept"
    AT_RISK = "at_risk"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Realised:
    """A promise, and what became of it.

    Attributes:
        standing: `broken`: the share is over the target, with the promise's
            confidence. `at_risk`: it is, with half a chance of error. `kept`: neither.
        target: the share promised.
        value: the share realised, as far as is known; 0 before any request.
        low: the mean chance of requests so far is at least this, and
        high: at most this, with the promise's confidence, at all times at once.
        requests: how many there were.
        audited: how many of them were known.
    """

    standing: Standing
    target: float
    value: float
    low: float
    high: float
    requests: int
    audited: int

    @property
    def shown(self) -> bool:
        """Whether keeping it is shown, and not only not refuted."""
        return self.high <= self.target


class Promise:
    """A limit on a share of requests, and what is known of it. Memory is fixed."""

    def __init__(
        self, target: float, *, least_chance: float = 1.0, confidence: float = 0.95
    ) -> None:
        """Begin with nothing known, or go on with `from_state`.

        Args:
            target: the share promised not to be passed, 0..1.
            least_chance: the least probability with which any request will be
                looked at; 1 where all are known, as whether a request was spilled.
                A small one makes the upper end come down slowly.
            confidence: above 0, under 1.

        Raises:
            ValueError: one of them is out of its range.
        """
        if not 0 <= target <= 1:
            raise ValueError(f"a share is in 0..1, got {target}")
        if not 0 < least_chance <= 1:
            raise ValueError(f"a chance to be looked at is in 0..1, got {least_chance}")
        if not 0 < confidence < 1:
            raise ValueError(f"a confidence is above 0 and under 1, got {confidence}")
        self._target = target
        self._least_chance = least_chance
        self._confidence = confidence
        self._requests = 0
        self._audited = 0
        self._sum = 0.0
        self._ups = [0.0] * len(_RATES_UP)
        self._downs = [0.0] * len(_RATES_DOWN)

    def known(self, amount: float, *, chance: float = 1.0) -> None:
        """Take in a request of which it is known how much of what is limited it had.

        Args:
            amount: 0..1; 1 where it happened, 0 where it did not. A request that was
                spilled because it was hard has no excess: 0, and a chance of 1.
            chance: with which this request was chosen to be looked at; 1 for one that
                is known anyhow.

        Raises:
            ValueError: the amount is not in 0..1, or the chance is under the least.
        """
        if not 0 <= amount <= 1:
            raise ValueError(f"an amount is in 0..1, got {amount}")
        if not self._least_chance <= chance <= 1:
            raise ValueError(
                f"a chance of {chance} is not in {self._least_chance}..1, as promised"
            )
        self._requests += 1
        self._audited += 1
        if not amount:
            return
        count = amount / chance
        self._sum += count
        for i, share in enumerate(_RATES_UP):
            self._ups[i] += math.log1p(share * self._least_chance * count)
        for i, share in enumerate(_RATES_DOWN):
            self._downs[i] += math.log1p(-share * self._least_chance * count)

    def unknown(self, requests: int = 1) -> None:
        """Take in requests that could have been chosen to be looked at and were not."""
        if requests < 0:
            raise ValueError(f"{requests} requests are none to count")
        self._requests += requests

    def realised(self) -> Realised:
        """What became of the promise so far."""
        miss = (1 - self._confidence) / 2
        low, high = self._lower(miss), self._upper(miss)
        value = self._sum / self._requests if self._requests else 0.0
        if low > self._target:
            standing = Standing.BROKEN
        elif self._lower(0.5) > self._target:
            standing = Standing.AT_RISK
        else:
            standing = Standing.KEPT
        return Realised(
            standing, self._target, value, low, high, self._requests, self._audited
        )

    def to_state(self) -> dict[str, Any]:
        """Everything, as numbers that JSON and MessagePack can hold."""
        return {
            "target": self._target,
            "least_chance": self._least_chance,
            "confidence": self._confidence,
            "requests": self._requests,
            "audited": self._audited,
            "sum": self._sum,
            "ups": list(self._ups),
            "downs": list(self._downs),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Promise:
        """Go on where `to_state` was.

        Raises:
            ValueError: the state is not of a promise.
        """
        try:
            promise = cls(
                float(state["target"]),
                least_chance=float(state["least_chance"]),
                confidence=float(state["confidence"]),
            )
            promise._requests = int(state["requests"])
            promise._audited = int(state["audited"])
            promise._sum = float(state["sum"])
            promise._ups = [float(each) for each in state["ups"]]
            promise._downs = [float(each) for each in state["downs"]]
        except (KeyError, TypeError) as error:
            raise ValueError(f"not the state of a promise: {error}") from error
        if (len(promise._ups), len(promise._downs)) != (
            len(_RATES_UP),
            len(_RATES_DOWN),
        ):
            raise ValueError("the state is of a promise with other bets")
        return promise

    def _lower(self, miss: float) -> float:
        """The least sum of means that the bets on more have not made absurd."""
        rates = [share * self._least_chance for share in _RATES_UP]
        wanted = math.log(len(rates) / miss)
        least = _bisect(
            0.0,
            self._sum,
            lambda total: (
                _log_sum(
                    won - rate * total
                    for won, rate in zip(self._ups, rates, strict=True)
                )
                >= wanted
            ),
        )
        return min(1.0, least / self._requests) if self._requests else 0.0

    def _upper(self, miss: float) -> float:
        """The greatest sum of means that the bets on less have not made absurd."""
        rates = [share * self._least_chance for share in _RATES_DOWN]
        wanted = math.log(len(rates) / miss)
        # Where the best of the bets alone has won enough.
        enough = min(
            (wanted - won) / rate for won, rate in zip(self._downs, rates, strict=True)
        )
        most = _bisect(
            0.0,
            enough,
            lambda total: (
                _log_sum(
                    won + rate * total
                    for won, rate in zip(self._downs, rates, strict=True)
                )
                < wanted
            ),
        )
        return min(1.0, most / self._requests) if self._requests else 1.0


def believed_excess(cloud: NDArray[np.floating[Any]], edge_label: int) -> float:
    """By how much the cloud believes its own answer more than the edge's, 0..1.

    Averaged over requests this is the excess error of the edge over the cloud as far as
    the cloud's probabilities are true (see `cascade.temperature`), and more than that
    where the edge knows what the cloud does not. 0 where the two agree.

    Args:
        cloud: probabilities [classes], or [1, classes].
        edge_label: the class the edge answered.

    Raises:
        ValueError: there is no such class, or a probability is not in 0..1.
    """
    p = np.asarray(cloud, np.float64).reshape(-1)
    if not 0 <= edge_label < len(p) or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(
            f"class {edge_label} needs a probability among {len(p)} classes"
        )
    return float(p.max() - p[edge_label])


def _bisect(low: float, high: float, holds: Callable[[float], bool]) -> float:
    """Up to where `holds`, which does from `low` on if at all; `low` if nowhere."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _log_sum(logs: Iterable[float]) -> float:
    each = list(logs)
    top = max(each)
    return top + math.log(math.fsum(math.exp(one - top) for one in each))
