"""Latencies in buckets that grow with the value: any range, a known relative error.

Source: Masson, Rim and Lee, "DDSketch" (VLDB 2019), section 2: bucket i holds
what is over g^(i-1) and at most g^i, with g = (1 + e) / (1 - e), and 2·g^i / (g + 1) is
within the share e of all of it.

Of the libraries, hdrhistogram has no wheel for Linux on aarch64, no types, and needs
setuptools at run time; ddsketch has had no release since April 2024 and needs `six`.
Neither would be shorter to use than this is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

RELATIVE_ERROR: Final = 0.005
# One microsecond: nothing here is measured more finely.
LEAST_S: Final = 1e-6
_GAMMA: Final = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_LOG_GAMMA: Final = math.log(_GAMMA)
QUANTILES: Final[Mapping[str, float]] = {
    "p50": 0.5,
    "p90": 0.9,
    "p99": 0.99,
    "p99.9": 0.999,
}


class Histogram:
    """Counts of durations in seconds; quantiles are within `RELATIVE_ERROR`."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self._sum_s = 0.0
        self.count = 0
        self.min_s = math.inf
        self.max_s = 0.0

    def record(self, seconds: float) -> None:
        """Count one; what is below a microsecond counts as one."""
        seconds = max(seconds, LEAST_S)
        self._buckets[math.ceil(math.log(seconds) / _LOG_GAMMA)] += 1
        self._sum_s += seconds
        self.count += 1
        self.min_s = min(self.min_s, seconds)
        self.max_s = max(self.max_s, seconds)

    def add(self, other: Histogram) -> None:
        """Count all that another has counted."""
        self._buckets.update(other._buckets)
        self._sum_s += other._sum_s
        self.count += other.count
        self.min_s = min(self.min_s, other.min_s)
        self.max_s = max(self.max_s, other.max_s)

    def quantile(self, share: float) -> float | None:
        """The smallest duration that `share` of all are not above; None of none.

        The least and the greatest are exact.
        """
        if self.count == 0:
            return None
        rank = max(1, math.ceil(share * self.count))
        for index in sorted(self._buckets):
            rank -= self._buckets[index]
            if rank <= 0:
                middle = 2 * math.exp(index * _LOG_GAMMA) / (_GAMMA + 1)
                return min(max(middle, self.min_s), self.max_s)
        return self.max_s

    def document(self, *, buckets: bool = False) -> dict[str, Any]:
        """Its figures in milliseconds, None where nothing was counted.

        Args:
            buckets: also each bucket as [upper bound in ms, count], so that the
                histograms of several runs can be added up.
        """
        if self.count == 0:
            return {"count": 0, **dict.fromkeys((*QUANTILES, "max", "mean"))}
        found: dict[str, Any] = {
            "count": self.count,
            **{name: _ms(self.quantile(q)) for name, q in QUANTILES.items()},
            "max": _ms(self.max_s),
            "mean": _ms(self._sum_s / self.count),
        }
        if buckets:
            found["buckets"] = [
                [_ms(math.exp(index * _LOG_GAMMA)), self._buckets[index]]
                for index in sorted(self._buckets)
            ]
        return found


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000.0, 4)
