"""What a process measured, as Prometheus reads it. The only user of prometheus_client.

Numbers live where they are counted and are read when somebody asks. Nothing here locks:
histograms are filled and read in the event loop.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from itertools import accumulate
from typing import TYPE_CHECKING, Final, Literal

from lifecycle.page import Page

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Metric

SECONDS: Final = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
SIZES: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0)
MAX_SERIES: Final = 512
OTHER: Final = "other"

Labels = tuple[str, ...]


class Histogram:
    """How often a value fell under each bound; costs a fraction of a microsecond.

    Args:
        bounds: upper bounds, ascending; infinity is there by itself.
    """

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    @property
    def total(self) -> float:
        """The sum of all values."""
        return self._sum

    def buckets(self) -> list[tuple[str, float]]:
        """Each bound and how many values were at most that, as Prometheus has it."""
        bounds = [*map(str, self._bounds), "+Inf"]
        return list(zip(bounds, map(float, accumulate(self._counts)), strict=True))


class Histograms:
    """One histogram for each set of label values; past a bound they share one.

    A label's values come from model names and versions, and a repository that changes
    every hour must not fill the memory of two programs.
    """

    def __init__(
        self, bounds: Sequence[float], labels: int, *, most: int = MAX_SERIES
    ) -> None:
        self._bounds = bounds
        self._other = (OTHER,) * labels
        self._most = most
        self._by_labels: dict[Labels, Histogram] = {}

    def of(self, labels: Labels) -> Histogram:
        """The histogram of these label values."""
        found = self._by_labels.get(labels)
        if found is None:
            if len(self._by_labels) >= self._most:
                labels = self._other
            found = self._by_labels.setdefault(labels, Histogram(self._bounds))
        return found

    def samples(self) -> Mapping[Labels, Histogram]:
        """All of them."""
        return self._by_labels


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: its name as Prometheus advises, what it means, its values by labels.

    `name` of a counter ends in `_total`. `values` has one entry with no labels, or one
    for each set of values of `labels`.
    """

    name: str
    help: str
    kind: Literal["counter", "gauge", "histogram"]
    values: Mapping[Labels, float | Histogram]
    labels: Labels = ()


def gauge(name: str, help_: str, value: float) -> Family:
    """A gauge without labels."""
    return Family(name, help_, "gauge", {(): value})


def counter(name: str, help_: str, value: float) -> Family:
    """A counter without labels."""
    return Family(name, help_, "counter", {(): value})


class Exposition:
    """The page that Prometheus scrapes.

    Importing prometheus_client takes 7 MB, so this is made only where it is served.

    Args:
        collect: gives every metric as it is now.
    """

    def __init__(self, collect: Callable[[], Iterable[Family]]) -> None:
        # Not at the top: an agent without a port stays without it.
        from prometheus_client import CollectorRegistry  # noqa: PLC0415
        from prometheus_client.process_collector import (  # noqa: PLC0415
            ProcessCollector,
        )

        self._collect = collect
        self._registry: CollectorRegistry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        self._registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """As a collector of prometheus_client."""
        for family in self._collect():
            yield _metric(family)

    def page(self) -> Page:
        """`/metrics`."""
        from prometheus_client.exposition import (  # noqa: PLC0415
            CONTENT_TYPE_PLAIN_0_0_4,
            generate_latest,
        )

        body = generate_latest(self._registry)
        return Page(HTTPStatus.OK, body, CONTENT_TYPE_PLAIN_0_0_4)


def _metric(family: Family) -> Metric:
    from prometheus_client import Metric  # noqa: PLC0415

    name = family.name.removesuffix("_total")
    metric = Metric(name, family.help, family.kind)
    for values, value in family.values.items():
        labels = dict(zip(family.labels, values, strict=True))
        if isinstance(value, Histogram):
            buckets = value.buckets()
            for bound, count in buckets:
                metric.add_sample(f"{name}_bucket", {**labels, "le": bound}, count)
            metric.add_sample(f"{name}_count", labels, buckets[-1][1])
            metric.add_sample(f"{name}_sum", labels, value.total)
        else:
            metric.add_sample(family.name, labels, value)
    return metric
