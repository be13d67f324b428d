from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade.evaluation import (
    Costs,
    agreement,
    at_threshold,
    auroc,
    bootstrap,
    confusion,
    deferral,
    deferral_limits,
    per_class,
)

flags = st.lists(st.booleans(), min_size=1, max_size=30)


def test_a_score_that_knows_everything_is_an_oracle_and_its_reverse_is_the_worst() -> (
    None
):
    edge = np.array([True, True, False, False])
    cloud = np.array([True, True, True, True])
    knows = deferral(np.array([0.9, 0.8, 0.2, 0.1]), edge, cloud)
    assert knows.score == pytest.approx(1.0)
    assert knows.edge_wrong_auroc == knows.gain_auroc == 1.0
    reverse = deferral(np.array([0.1, 0.2, 0.8, 0.9]), edge, cloud)
    assert reverse.score == pytest.approx(-1.0)
    assert reverse.edge_wrong_auroc == 0.0
    nothing = deferral(np.ones(4), edge, cloud)
    assert nothing.score == pytest.approx(0.0)
    assert nothing.edge_wrong_auroc == 0.5


@pytest.mark.parametrize("edge", [True, False])
def test_models_that_never_differ_leave_nothing_to_score(edge: bool) -> None:
    each = np.full(5, edge)
    found = deferral(np.linspace(0, 1, 5), each, each)
    assert (found.score, found.gain_auroc) == (0.0, None)
    assert found.edge_wrong_auroc is None


@settings(deadline=None)
@given(data=st.lists(st.tuples(st.sampled_from([0.1, 0.5, 0.9]), st.booleans())))
def test_the_auroc_is_the_share_of_pairs_in_order(
    data: list[tuple[float, bool]],
) -> None:
    score = np.array([each[0] for each in data])
    positive = np.array([each[1] for each in data], bool)
    pairs = [(a > b) + (a == b) / 2 for a in score[positive] for b in score[~positive]]
    found = auroc(score, positive)
    assert found == (pytest.approx(np.mean(pairs)) if pairs else None)


@settings(deadline=None)
@given(edge=flags, seed=st.integers(0, 99))
def test_deferral_is_between_worst_and_oracle_whatever_the_models_do(
    edge: list[bool], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    right, cloud = np.array(edge), rng.random(len(edge)) < 0.7
    found = deferral(rng.random(len(edge)).round(1), right, cloud)
    assert found.area <= found.oracle_area + 1e-9
    assert found.score <= 1 + 1e-9
    order = rng.permutation(len(edge))
    sure = rng.random(len(edge))
    assert deferral(sure, right, cloud) == deferral(
        sure[order], right[order], cloud[order]
    )


def test_unusable_answers_are_the_first_to_be_spilled() -> None:
    sure = np.array([-np.inf, 0.9, -np.inf, 0.8])
    edge = np.array([False, True, False, True])
    assert deferral(sure, edge, np.ones(4, bool)).score == pytest.approx(1.0)


def test_what_a_threshold_does_is_counted_with_what_it_saves() -> None:
    sure = np.array([0.9, 0.8, 0.2, -np.inf])
    edge, cloud = np.array([True, True, False, False]), np.ones(4, bool)
    costs = Costs(np.array([10, 20, 30, 40]), edge_ms=1.0, spill_ms=20.0)
    found = at_threshold(sure, edge, cloud, 0.5, costs)
    assert (found.spilled, found.accuracy) == (0.5, 1.0)
    assert (found.edge_accuracy, found.cloud_accuracy) == (0.5, 1.0)
    assert found.bytes_saved == 30
    assert found.ms_saved == pytest.approx(9.0)
    assert found.accuracy_limits[0] < 1.0 == found.accuracy_limits[1]
    unusable = at_threshold(sure, edge, cloud, -np.inf)
    assert (unusable.spilled, unusable.accuracy) == (0.25, 0.75)


def test_limits_by_bootstrap_hold_the_value_and_follow_their_seed() -> None:
    rng = np.random.default_rng(1)
    sure = rng.random(300)
    edge, cloud = rng.random(300) < sure, rng.random(300) < 0.9
    value = deferral(sure, edge, cloud).score

    def limits(seed: int) -> tuple[float, float]:
        return bootstrap(
            lambda at: deferral(sure[at], edge[at], cloud[at]).score,
            300,
            np.random.default_rng(seed),
            times=60,
        )

    low, high = limits(2)
    assert low < value < high
    assert limits(2) == (low, high)


@given(
    sure=st.lists(st.integers(0, 9), min_size=2, max_size=60), seed=st.integers(0, 99)
)
@settings(max_examples=25, deadline=None)
def test_the_quick_limits_are_those_of_drawing_and_sorting_again(
    sure: list[int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    confidence = np.array(sure) / 10
    edge, cloud = rng.random(len(sure)) < 0.6, rng.random(len(sure)) < 0.8
    slow = bootstrap(
        lambda at: deferral(confidence[at], edge[at], cloud[at]).score,
        len(sure),
        np.random.default_rng(seed),
        times=9,
    )
    again = np.random.default_rng(seed)
    assert deferral_limits(confidence, edge, cloud, again, times=9) == pytest.approx(
        slow
    )


def test_limits_of_a_deferral_score_hold_it_and_narrow_with_more_examples() -> None:
    rng = np.random.default_rng(1)
    widths = []
    for n in (300, 10_000):
        sure = rng.random(n)
        edge, cloud = rng.random(n) < sure, rng.random(n) < 0.9
        value = deferral(sure, edge, cloud).score
        low, high = deferral_limits(sure, edge, cloud, np.random.default_rng(2))
        assert low < value < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 3


def test_each_class_is_counted_and_one_without_examples_is_nothing() -> None:
    truth, answered = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 3])
    found = per_class(answered, truth, 4)
    assert found.count.tolist() == [2, 2, 0, 0]
    assert found.precision.tolist() == [1.0, 0.5, 0.0, 0.0]
    assert found.recall.tolist() == [0.5, 0.5, 0.0, 0.0]
    assert found.f1 == pytest.approx([2 / 3, 0.5, 0.0, 0.0])
    assert found.macro_f1 == pytest.approx((2 / 3 + 0.5) / 2)
    assert confusion(answered, truth, 4).sum() == 4
    assert confusion(answered, truth, 4)[1, 3] == 1
    nobody = per_class(np.array([], int), np.array([], int), 2)
    assert nobody.macro_f1 == 0.0


def test_agreement_is_a_share_with_limits() -> None:
    share, (low, high) = agreement(np.array([1, 2, 3]), np.array([1, 2, 0]))
    assert share == pytest.approx(2 / 3)
    assert low < share < high
    assert agreement(np.zeros(9, int), np.zeros(9, int))[1][1] == 1.0


def test_what_cannot_be_evaluated_is_refused() -> None:
    right = np.ones(2, bool)
    with pytest.raises(ValueError, match="nothing"):
        at_threshold(np.array([]), np.array([], bool), np.array([], bool), 0.5)
    with pytest.raises(ValueError, match="needs whether"):
        at_threshold(np.ones(3), right, right, 0.5)
    with pytest.raises(ValueError, match="positive or not"):
        auroc(np.ones(3), right)
    with pytest.raises(ValueError, match="not among"):
        per_class(np.array([2]), np.array([0]), 2)
    with pytest.raises(ValueError, match="true class"):
        confusion(np.array([0]), np.array([0, 1]), 2)
    with pytest.raises(ValueError, match="one length"):
        agreement(np.array([]), np.array([]))
