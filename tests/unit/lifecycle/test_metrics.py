"""What was counted, as Prometheus reads it."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from lifecycle.metrics import (
    OTHER,
    SECONDS,
    Exposition,
    Family,
    Histogram,
    Histograms,
    counter,
    gauge,
)


def samples(*families: Family) -> dict[tuple[str, tuple[str, ...]], float]:
    body = Exposition(lambda: families).page().body.decode()
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }


def test_counters_and_gauges_are_read_back() -> None:
    said = samples(
        counter("x_things_total", "Things.", 3),
        gauge("x_size", "Size.", -1.5),
        Family("x_by_total", "By.", "counter", {("a", 'b"\n'): 2}, ("one", "two")),
    )
    assert said["x_things_total", ()] == 3
    assert said["x_size", ()] == -1.5
    assert said["x_by_total", ("a", 'b"\n')] == 2


def test_the_process_tells_of_its_own_memory() -> None:
    assert samples()["process_resident_memory_bytes", ()] > 1_000_000


@given(st.lists(st.floats(0, 100)))
def test_each_bucket_counts_what_is_at_most_its_bound(values: list[float]) -> None:
    histogram = Histogram(SECONDS)
    for value in values:
        histogram.observe(value)
    said = samples(Family("x_seconds", "X.", "histogram", {(): histogram}))
    assert said["x_seconds_count", ()] == len(values)
    assert math.isclose(said["x_seconds_sum", ()], sum(values), abs_tol=1e-9)
    for bound in SECONDS:
        counted = said["x_seconds_bucket", (str(bound),)]
        assert counted == sum(value <= bound for value in values)
    assert said["x_seconds_bucket", ("+Inf",)] == len(values)


def test_labels_past_the_bound_share_one_histogram() -> None:
    by_model = Histograms(SECONDS, 1, most=2)
    for name in "abcde":
        by_model.of((name,)).observe(1)
    assert set(by_model.samples()) == {("a",), ("b",), (OTHER,)}
    assert by_model.samples()[OTHER,].total == 3
