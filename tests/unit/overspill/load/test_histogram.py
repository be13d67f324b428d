from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overspill.load.histogram import LEAST_S, RELATIVE_ERROR, Histogram

DURATIONS = st.lists(st.floats(LEAST_S, 1e5), min_size=1, max_size=200)


def counted(values: list[float]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


@given(values=DURATIONS, share=st.floats(0.0, 1.0))
def test_a_quantile_is_within_the_stated_error_of_the_true_one(
    values: list[float], share: float
) -> None:
    true = sorted(values)[max(1, math.ceil(share * len(values))) - 1]

    found = counted(values).quantile(share)

    assert found == pytest.approx(true, rel=RELATIVE_ERROR * 1.0001)


@given(values=DURATIONS)
def test_the_extremes_are_exact(values: list[float]) -> None:
    histogram = counted(values)

    assert (histogram.min_s, histogram.max_s) == (min(values), max(values))
    assert histogram.quantile(1.0) == pytest.approx(max(values), rel=RELATIVE_ERROR)


@given(first=DURATIONS, second=DURATIONS)
def test_two_histograms_added_are_the_histogram_of_both(
    first: list[float], second: list[float]
) -> None:
    both = counted(first)
    both.add(counted(second))
    direct = counted(first + second)

    assert both.count == direct.count
    for share in (0.0, 0.5, 0.99, 1.0):
        assert both.quantile(share) == direct.quantile(share)


def test_nothing_counted_has_no_quantiles() -> None:
    assert Histogram().quantile(0.5) is None
    assert Histogram().document()["p99"] is None


def test_the_document_is_in_milliseconds_and_its_buckets_add_up() -> None:
    document = counted([0.010] * 99 + [1.0]).document(buckets=True)

    assert document["p50"] == pytest.approx(10.0, rel=RELATIVE_ERROR)
    assert document["max"] == 1000.0
    assert sum(count for _, count in document["buckets"]) == document["count"] == 100
