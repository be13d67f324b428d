from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade.curves import oracle_curve, random_curve, threshold_curve

T, F = True, False


@st.composite
def runs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n = draw(st.integers(1, 40))
    flags = st.lists(st.booleans(), min_size=n, max_size=n)
    sure = draw(st.lists(st.sampled_from([0.1, 0.5, 0.5, 0.9]), min_size=n, max_size=n))
    return np.array(sure), np.array(draw(flags)), np.array(draw(flags))


def test_a_score_that_knows_its_errors_gains_them_first() -> None:
    sure = np.array([0.9, 0.2, 0.8, 0.1])
    curve = threshold_curve(sure, np.array([T, F, T, F]), np.array([T, T, F, T]))
    assert curve.spilled.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert curve.accuracy.tolist() == [0.5, 0.75, 1.0, 0.75, 0.75]
    assert curve.accuracy_at(0.375) == pytest.approx(0.875)


def test_equal_confidences_spill_together_because_a_threshold_cannot_part_them() -> (
    None
):
    sure = np.array([0.5, 0.5, 0.5, 0.9])
    curve = threshold_curve(sure, np.array([F, F, F, T]), np.array([T, T, T, T]))
    assert curve.spilled.tolist() == [0, 0.75, 1]
    assert curve.threshold.tolist() == [0.5, 0.9, np.inf]


@settings(deadline=None)
@given(runs())
def test_every_point_is_what_its_threshold_really_gives(
    run: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    sure, edge, cloud = run
    curve = threshold_curve(sure, edge, cloud)
    for share, accuracy, threshold in zip(
        curve.spilled, curve.accuracy, curve.threshold, strict=True
    ):
        hard = sure < threshold
        assert hard.mean() == pytest.approx(share)
        assert np.where(hard, cloud, edge).mean() == pytest.approx(accuracy)


@settings(deadline=None)
@given(runs())
def test_curves_share_their_ends_and_none_is_above_the_oracle(
    run: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    sure, edge, cloud = run
    ours, best = threshold_curve(sure, edge, cloud), oracle_curve(edge, cloud)
    for curve in (ours, best, random_curve(edge, cloud)):
        assert curve.accuracy[0] == pytest.approx(edge.mean())
        assert curve.accuracy[-1] == pytest.approx(cloud.mean())
        for share in np.linspace(0, 1, 7):
            assert curve.accuracy_at(share) <= best.accuracy_at(share) + 1e-9


def test_an_oracle_spills_gains_first_and_losses_last() -> None:
    curve = oracle_curve(np.array([T, F, F, T]), np.array([F, T, F, T]))
    assert curve.accuracy.tolist() == [0.5, 0.75, 0.75, 0.75, 0.5]


@pytest.mark.parametrize(
    ("sure", "edge", "cloud", "said"),
    [
        (np.array([]), np.array([], bool), np.array([], bool), "one length"),
        (np.ones(2), np.array([T]), np.array([T, F]), "one length"),
        (np.array([np.nan]), np.array([T]), np.array([T]), "NaN"),
        (np.ones(1), np.array([1]), np.array([T]), "bool"),
    ],
)
def test_what_makes_no_curve_is_refused(
    sure: np.ndarray, edge: np.ndarray, cloud: np.ndarray, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        threshold_curve(sure, edge, cloud)
