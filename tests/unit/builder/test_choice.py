from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.core.candidates import candidates
from builder.core.choice import (
    SAME_COST,
    Considered,
    Constraints,
    choose,
    pareto_front,
    spill_and_cost,
)
from cascade.curves import threshold_curve
from cascade.targets import MaxError, MaxExcess, MaxSpill


def one(name: str, kb: float, ms: float, cost: float, **more: float) -> Considered:
    return Considered(
        name,
        int(1000 * kb),
        ms,
        more.get("accuracy", 0.9),
        more.get("cloud", 0.95),
        more.get("spill", cost),
        cost,
    )


SMALL = one("small", 50, 0.1, 0.12)
LARGE = one("large", 200, 0.4, 0.05)
MIDDLE = one("middle", 100, 0.2, 0.052)
WORSE = one("worse", 110, 0.3, 0.2)


def test_the_smallest_of_the_best_is_taken() -> None:
    found = choose([SMALL, LARGE, MIDDLE, WORSE], Constraints())
    assert found.chosen == "middle"
    assert "smallest" in found.why
    assert "large" in found.why


def test_a_limit_takes_out_what_breaks_it_and_says_so() -> None:
    found = choose([SMALL, LARGE, MIDDLE], Constraints(max_kb=60, max_ms=0.3))
    assert found.chosen == "small"
    assert found.broken["large"] == (
        "200.0 KB, and 60 are allowed",
        "0.4 ms, and 0.3 are allowed",
    )


def test_where_every_candidate_breaks_a_limit_the_closest_is_named() -> None:
    found = choose([SMALL, LARGE], Constraints(max_kb=10))
    assert found.chosen is None
    assert "closest is large: 200.0 KB" in found.why


def test_spilling_and_accuracy_are_limits_too() -> None:
    found = choose([SMALL, MIDDLE], Constraints(max_spill=0.1))
    assert found.chosen == "middle"
    far = one("far", 1, 0.1, 0.0, accuracy=0.8)
    assert choose([far, SMALL], Constraints(max_accuracy_drop=0.1)).chosen == "small"


def test_the_front_leaves_out_what_another_beats_in_everything() -> None:
    front = [each.name for each in pareto_front([SMALL, LARGE, MIDDLE, WORSE])]
    assert front == ["small", "large", "middle"]


def test_two_that_are_equal_are_both_on_the_front() -> None:
    twin = one("twin", 50, 0.1, 0.12)
    assert len(pareto_front([SMALL, twin])) == 2


# The edge is wrong on the two least sure of ten, the cloud on the surest.
CONFIDENCE = np.linspace(0.1, 1.0, 10)
EDGE = np.array([False, False, *[True] * 7, False])
CLOUD = np.array([*[True] * 9, False])
CURVE = threshold_curve(CONFIDENCE, EDGE, CLOUD)


@pytest.mark.parametrize(
    ("target", "spill", "cost"),
    [
        (MaxExcess(0.05), 0.2, 0.2),
        (MaxExcess(0.25), 0.0, 0.0),
        (MaxError(0.2), 0.1, 0.1),
        (MaxError(0.05), None, 1.0),
        (MaxSpill(0.1), 0.1, 0.2),
        (None, 0.1, 0.2),
    ],
)
def test_a_target_costs_what_it_takes_to_meet_it(
    target: MaxExcess | MaxError | MaxSpill | None, spill: float | None, cost: float
) -> None:
    share, costs = spill_and_cost(CURVE, 0.7, target)
    assert costs == pytest.approx(cost)
    assert (share is None) == (spill is None)
    assert spill is None or share == pytest.approx(spill)


def test_without_a_cloud_no_risk_target_is_met_and_accuracy_is_the_cost() -> None:
    assert spill_and_cost(None, 0.7, MaxExcess(0.1)) == (None, 1.0)
    share, cost = spill_and_cost(None, 0.7, MaxSpill(0.1))
    assert share == 0.1
    assert cost == pytest.approx(0.3)


def test_only_students_are_pruned() -> None:
    names = [each.name for each in candidates(["student", "cloud"], ["int8"], [0.5])]
    assert names == ["student-int8", "student-pruned50-int8", "cloud-int8"]


@given(
    st.lists(
        st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(0, 5)),
        min_size=1,
        max_size=8,
    ),
    st.none() | st.integers(1, 5),
)
def test_what_is_chosen_keeps_every_limit_and_costs_about_the_least(
    drawn: list[tuple[int, int, int]], max_kb: int | None
) -> None:
    tried = [
        one(f"c{index}", kb, ms, cost / 10)
        for index, (kb, ms, cost) in enumerate(drawn)
    ]
    found = choose(tried, Constraints(max_kb=max_kb))
    allowed = [
        each for each in tried if max_kb is None or each.size_bytes <= 1000 * max_kb
    ]
    if not allowed:
        assert found.chosen is None
        return
    (chosen,) = [each for each in tried if each.name == found.chosen]
    assert chosen in allowed
    assert chosen.cost <= min(each.cost for each in allowed) + SAME_COST
    assert set(found.broken) == {each.name for each in tried} - {
        each.name for each in allowed
    }
    for each in tried:
        beaten = any(
            other.size_bytes <= each.size_bytes
            and other.p50_ms <= each.p50_ms
            and other.cost <= each.cost
            and (other.size_bytes, other.p50_ms, other.cost)
            != (each.size_bytes, each.p50_ms, each.cost)
            for other in tried
        )
        assert (each.name in found.front) != beaten


def test_fewer_examples_to_calibrate_on_cost_more() -> None:
    rng = np.random.default_rng(5)
    sure = rng.random(4_000)
    edge = rng.random(4_000) > 0.3 * (1 - sure)
    curve = threshold_curve(sure, edge, np.ones(4_000, np.bool_))
    accuracy = float(edge.mean())
    costs = [
        spill_and_cost(curve, accuracy, MaxExcess(0.02), examples)[1]
        for examples in (None, 100_000, 2_000, 300)
    ]
    assert costs == sorted(costs)
    assert costs[0] < costs[2] < costs[3] < 1
    assert spill_and_cost(curve, accuracy, MaxExcess(0.02), 5)[0] is not None
    on_average = MaxExcess(0.02, confidence=None)
    assert spill_and_cost(curve, accuracy, on_average, 300)[1] == costs[0]
