"""Learn what a batch costs: the time of one call, by model version and padded size.

A cost is the p95 of what was seen lately, so that a promise made by it holds. It
starts from the warm-up, forgets slowly, and is bounded in memory. A size that was
never run is interpolated (a·n + b) between those that were.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import Final

REMEMBERED: Final = 64
FORGET_AFTER: Final = 256
MOST_CURVES: Final = 1024
MOST_SIZES: Final = 32
UNKNOWN_S: Final = 0.001
DOUBT: Final = 0.98
LEAST_S: Final = 1e-6
TIMES_COST: Final = 20.0

Key = tuple[str, int]
"""A model version ("name/version"), and the bucket of its item size; 0: any."""


def size_bucket(bytes_per_row: int) -> int:
    """The bucket of an item's size: those within a factor of two cost much alike."""
    return max(bytes_per_row, 1).bit_length()


class Costs:
    """The learned costs of every model version.

    Args:
        least_limit_s: no batch is killed before this.
        times_cost: nor before so many times what such a batch costs.
    """

    def __init__(
        self, *, least_limit_s: float = 5.0, times_cost: float = TIMES_COST
    ) -> None:
        self._least_limit_s = least_limit_s
        self._times_cost = times_cost
        self._curves: OrderedDict[Key, Curve] = OrderedDict()

    def seed(
        self,
        model: str,
        costs_ms: Iterable[tuple[int, float]],
        item_costs_ms: Iterable[tuple[int, Iterable[tuple[int, float]]]] = (),
    ) -> None:
        """Start from what was measured at warm-up; what was learned before is forgotten.

        Args:
            model: "name/version".
            costs_ms: milliseconds of one call at each padded size, in rows.
            item_costs_ms: the same for items of so many bytes a row.
        """
        self.forget(model)
        by_bucket = {0: _seeds(costs_ms)}
        # Of the lengths that share a bucket the longest is last, and holds.
        by_bucket |= {
            size_bucket(row_bytes): _seeds(costs)
            for row_bytes, costs in sorted(item_costs_ms)
        }
        for bucket, seeds in by_bucket.items():
            if seeds:
                self._curves[model, bucket] = Curve(seeds)

    def forget(self, model: str) -> None:
        """The version is no longer served."""
        for key in [each for each in self._curves if each[0] == model]:
            del self._curves[key]

    def curve(self, model: str, bucket: int = 0) -> Curve:
        """What batches of a model version cost, by size.

        Args:
            model: "name/version".
            bucket: of `size_bucket`, for models whose inputs have free axes.
        """
        key = (model, bucket)
        curve = self._curves.get(key)
        if curve is None:
            # Until it has run, a new item size costs what the nearest one does.
            near = min(
                (each for each in self._curves if each[0] == model),
                key=lambda each: abs(each[1] - bucket),
                default=None,
            )
            seeds = {} if near is None else self._curves[near].table()
            curve = self._curves[key] = Curve(seeds)
            if len(self._curves) > MOST_CURVES:
                self._curves.popitem(last=False)
        else:
            self._curves.move_to_end(key)
        return curve

    def cost_s(self, model: str, size: int, bucket: int = 0) -> float:
        """The p95 of one call with `size` rows, in seconds."""
        return self.curve(model, bucket).cost_s(size)

    def note(self, model: str, size: int, took_s: float, bucket: int = 0) -> None:
        """A batch of `size` rows, padding included, took so long."""
        self.curve(model, bucket).note(size, took_s)

    def limit_s(self, model: str, size: int, bucket: int = 0) -> float | None:
        """When a batch of `size` rows counts as hung; None when nobody can say.

        Only a model that was warmed up has a limit by its cost: any other may meet a
        shape for the first time, and compile for it.
        """
        curve = self._curves.get((model, bucket))
        if curve is None or bucket or not curve.warmed:
            return None
        return max(self._least_limit_s, self._times_cost * curve.cost_s(size))


def _seeds(costs_ms: Iterable[tuple[int, float]]) -> dict[int, float]:
    return {size: max(ms / 1000, LEAST_S) for size, ms in costs_ms}


class Curve:
    """What the batches of one model version cost, by padded size.

    Args:
        seeds: seconds at some sizes, which hold until the first run of each.
    """

    __slots__ = ("_doubt", "_known", "_seeds", "_seen", "_sizes", "_table", "_turn")

    def __init__(self, seeds: dict[int, float]) -> None:
        self._seeds = dict(seeds)
        self._seen: dict[int, _Window] = {}
        self._sizes: list[int] = []
        self._known: dict[int, float] = {}
        self._table: dict[int, float] = {}
        self._doubt = 1.0
        self._turn = 0
        self._learn()

    @property
    def known(self) -> bool:
        """Whether anything was measured, here or at warm-up."""
        return bool(self._sizes)

    @property
    def warmed(self) -> bool:
        """Whether it started from a warm-up."""
        return bool(self._seeds)

    def note(self, size: int, took_s: float) -> None:
        """A batch of `size` rows took so long."""
        took_s = max(took_s, LEAST_S)
        window = self._seen.get(size)
        if window is None:
            if len(self._seen) >= MOST_SIZES:
                stale = min(self._seen, key=lambda each: self._seen[each].turn)
                del self._seen[stale]
            window = self._seen[size] = _Window()
        self._turn += 1
        window.turn = self._turn
        window.add(took_s)
        self._doubt = 1.0
        if self._turn % FORGET_AFTER == 0:
            self._age()
        self._learn()

    def doubt(self, requests: int) -> None:
        """So many were given up because of this curve, and nothing was learned.

        Else a cost that is too high would keep everything from running for ever, and
        itself from being found out.
        """
        self._doubt *= DOUBT**requests

    def cost_s(self, size: int) -> float:
        """The p95 of one call with `size` rows, in seconds."""
        cost = self._table.get(size)
        if cost is None:
            if len(self._table) > 4096:
                self._table = {}
            cost = self._table[size] = self._between(size)
        return cost

    def least_s(self) -> float:
        """The least that one request may take; 0 while nothing is known."""
        if not self._sizes:
            return 0.0
        size = self._sizes[0]
        window = self._seen.get(size)
        seed = self._seeds.get(size, math.inf)
        fastest = seed if window is None else min(seed, window.quantile_s(0.0))
        # What is known of larger batches only bounds a single row by its share.
        return fastest / size * self._doubt

    def typical_s(self, size: int) -> float:
        """The median of one call with `size` rows, in seconds."""
        window = self._seen.get(size)
        return self.cost_s(size) if window is None else window.quantile_s(0.5)

    def table(self) -> dict[int, float]:
        """The costs of the sizes that are known."""
        return dict(self._known)

    def _learn(self) -> None:
        known = dict(self._seeds)
        for size, window in self._seen.items():
            known[size] = window.quantile_s(0.95)
        self._known = known
        self._sizes = sorted(known)
        self._table = dict(known)

    def _age(self) -> None:
        # A size that looked dear is chosen no more: forget, so that it is tried again.
        for size, window in list(self._seen.items()):
            if self._turn - window.turn >= FORGET_AFTER:
                window.drop_oldest()
                if not window:
                    del self._seen[size]

    def _between(self, size: int) -> float:
        sizes, known = self._sizes, self._known
        if not sizes:
            return UNKNOWN_S
        if len(sizes) == 1:
            only = sizes[0]
            return known[only] * max(size / only, 1.0)
        above = min(max(bisect_left(sizes, size), 1), len(sizes) - 1)
        low, high = sizes[above - 1], sizes[above]
        slope = max((known[high] - known[low]) / (high - low), 0.0)
        line = known[low] + slope * (size - low)
        # Below the smallest size the line may cross zero, which no call does.
        return max(line, known[sizes[0]] * size / sizes[0] if size < sizes[0] else 0.0)


class _Window:
    """The latest costs of one size, in order of time and of value."""

    __slots__ = ("_latest", "_ordered", "turn")

    def __init__(self) -> None:
        self._latest: deque[float] = deque()
        self._ordered: list[float] = []
        self.turn = 0

    def __bool__(self) -> bool:
        return bool(self._latest)

    def add(self, took_s: float) -> None:
        if len(self._latest) == REMEMBERED:
            self.drop_oldest()
        self._latest.append(took_s)
        insort(self._ordered, took_s)

    def drop_oldest(self) -> None:
        oldest = self._latest.popleft()
        del self._ordered[bisect_left(self._ordered, oldest)]

    def quantile_s(self, share: float) -> float:
        # Rounded down: one outlier among few (a first call that compiled) is not p95.
        return self._ordered[int(share * (len(self._ordered) - 1))]
