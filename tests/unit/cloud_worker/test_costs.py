from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud_worker.core.costs import (
    MOST_CURVES,
    MOST_SIZES,
    REMEMBERED,
    Costs,
    Curve,
    size_bucket,
)

SEEDS = {1: 0.002, 8: 0.009}


def test_a_cost_starts_from_the_warm_up() -> None:
    costs = Costs()
    costs.seed("m/1", [(1, 2.0), (8, 9.0)])
    assert costs.cost_s("m/1", 1) == 0.002
    assert costs.cost_s("m/1", 8) == 0.009


def test_each_item_size_starts_from_its_own_warm_up() -> None:
    costs = Costs()
    short, long, longest = 64, 4000, 4090
    costs.seed(
        "m/1", (), [(longest, [(1, 9.0)]), (short, [(1, 2.0)]), (long, [(1, 8.0)])]
    )
    assert costs.cost_s("m/1", 1, size_bucket(short)) == 0.002
    # Two lengths, one bucket: what is promised must hold for both.
    assert costs.cost_s("m/1", 1, size_bucket(long)) == 0.009
    assert costs.cost_s("m/1", 1, size_bucket(5000)) == 0.009


def test_sizes_between_and_beyond_those_known_are_on_the_line() -> None:
    curve = Curve(SEEDS)
    assert curve.cost_s(4) == pytest.approx(0.005)
    assert curve.cost_s(16) == pytest.approx(0.017)


def test_one_known_size_is_never_cheaper_by_being_larger() -> None:
    curve = Curve({8: 0.008})
    assert curve.cost_s(1) == 0.008
    assert curve.cost_s(16) == pytest.approx(0.016)


def test_a_cost_is_the_p95_of_what_was_seen() -> None:
    curve = Curve(SEEDS)
    for each in range(1, 101):
        curve.note(8, each / 1000)
    # Of the latest 64, 37 to 100 ms.
    assert curve.cost_s(8) == 0.096
    assert curve.typical_s(8) == 0.068


def test_one_slow_first_call_among_few_does_not_make_a_model_dear() -> None:
    curve = Curve({})
    curve.note(4, 5.0)
    curve.note(4, 0.004)
    assert curve.cost_s(4) == 0.004


def test_what_was_slow_long_ago_is_forgotten() -> None:
    curve = Curve(SEEDS)
    for _ in range(REMEMBERED):
        curve.note(8, 1.0)
    assert curve.cost_s(8) == 1.0
    for _ in range(REMEMBERED):
        curve.note(8, 0.010)
    assert curve.cost_s(8) == 0.010


def test_a_size_that_once_looked_dear_is_tried_again_in_the_end() -> None:
    curve = Curve(SEEDS)
    curve.note(8, 60.0)
    for _ in range(2000):
        curve.note(1, 0.002)
    assert curve.cost_s(8) == SEEDS[8]


def test_giving_up_for_a_cost_that_is_never_measured_wears_it_down() -> None:
    curve = Curve({1: 10.0})
    curve.doubt(400)
    assert curve.least_s() < 0.01
    curve.note(1, 0.005)
    assert curve.least_s() == 0.005


def test_a_new_item_size_starts_from_the_nearest_one() -> None:
    costs = Costs()
    small, large = size_bucket(1_000), size_bucket(1_000_000)
    costs.note("m/1", 4, 0.004, small)
    costs.note("m/1", 4, 0.400, large)
    assert costs.cost_s("m/1", 4, size_bucket(4_000)) == 0.004
    assert costs.cost_s("m/1", 4, size_bucket(600_000)) == 0.400


def test_models_do_not_learn_from_each_other() -> None:
    costs = Costs()
    costs.note("m/1", 4, 0.004)
    costs.note("m/2", 4, 0.040)
    assert costs.cost_s("m/1", 4) == 0.004
    costs.forget("m/1")
    assert not costs.curve("m/1").known
    assert costs.cost_s("m/2", 4) == 0.040


def test_a_batch_is_hung_after_many_times_its_cost_and_never_before_the_least() -> None:
    costs = Costs(least_limit_s=5.0, times_cost=20.0)
    costs.seed("slow/1", [(1, 500.0)])
    costs.seed("quick/1", [(1, 1.0)])
    assert costs.limit_s("slow/1", 1) == 10.0
    assert costs.limit_s("quick/1", 1) == 5.0


def test_a_model_that_was_not_warmed_up_has_no_limit_as_it_may_compile() -> None:
    costs = Costs()
    costs.note("m/1", 4, 0.004, size_bucket(1000))
    assert costs.limit_s("m/1", 4, size_bucket(1000)) is None
    assert costs.limit_s("m/1", 4) is None


def test_memory_is_bounded_whatever_comes() -> None:
    costs = Costs()
    for number in range(2 * MOST_CURVES):
        costs.note(f"m/{number}", 1, 0.001)
    assert sum(costs.curve(f"m/{n}").known for n in range(2 * MOST_CURVES)) <= (
        MOST_CURVES
    )
    curve = Curve({})
    for size in range(1, 200):
        curve.note(size, 0.001)
    assert len(curve.table()) <= MOST_SIZES


@given(
    st.dictionaries(st.integers(1, 64), st.floats(1e-6, 10), max_size=8),
    st.lists(st.tuples(st.integers(1, 64), st.floats(0, 10)), max_size=100),
    st.integers(1, 128),
)
def test_every_cost_is_positive_and_finite(
    seeds: dict[int, float], seen: list[tuple[int, float]], size: int
) -> None:
    curve = Curve(seeds)
    for rows, took_s in seen:
        curve.note(rows, took_s)
    assert 0 < curve.cost_s(size) < 10_000
    assert 0 <= curve.least_s() <= 10
