from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade.scores import confidences, softmax
from cascade.temperature import (
    COLDEST,
    HOTTEST,
    brier,
    calibration_error,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability,
)


def drawn(
    n: int, classes: int, temperature: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose probabilities are true at `temperature`, and labels drawn so."""
    rng = np.random.default_rng(seed)
    raw = rng.normal(0, 2, (n, classes))
    steps = softmax(raw).cumsum(axis=-1)
    labels = (rng.random((n, 1)) > steps[:, :-1]).sum(axis=-1)
    return raw * temperature, labels


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_that_made_the_labels_is_found(temperature: float) -> None:
    raw, labels = drawn(4_000, 5, temperature, seed=1)
    assert fit_temperature(raw, labels) == pytest.approx(temperature, rel=0.08)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 999), n=st.integers(1, 40), classes=st.integers(1, 5))
def test_no_other_temperature_is_likelier(seed: int, n: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    raw, labels = rng.normal(0, 3, (n, classes)), rng.integers(0, classes, n)
    best = fit_temperature(raw, labels)
    least = negative_log_likelihood(raw, labels, best)
    for other in (COLDEST, 0.5, 1.0, 2.0, HOTTEST):
        assert least <= negative_log_likelihood(raw, labels, other) + 1e-6
    order = rng.permutation(n)
    assert fit_temperature(raw[order], labels[order]) == pytest.approx(best, rel=1e-3)


def test_all_right_all_wrong_and_nothing_said_have_a_temperature() -> None:
    raw = np.eye(3)
    assert fit_temperature(raw, np.arange(3)) == pytest.approx(COLDEST, rel=1e-3)
    wrong = fit_temperature(raw, np.array([1, 2, 0]))
    assert wrong == pytest.approx(HOTTEST, rel=1e-3)
    assert fit_temperature(np.zeros((4, 3)), np.zeros(4, np.int64)) == 1.0
    assert fit_temperature(np.array([[7.0], [1.0]]), np.zeros(2, np.int64)) == 1.0


def test_true_confidences_have_no_error_and_boasting_ones_do() -> None:
    raw, labels = drawn(6_000, 4, 1.0, seed=2)
    right = raw.argmax(axis=-1) == labels
    honest, boasting = confidences(raw), confidences(raw * 3)
    assert calibration_error(honest, right) < 0.02
    assert expected_calibration_error(honest, right) < 0.03
    assert calibration_error(boasting, right) > 0.1
    assert expected_calibration_error(boasting, right) > 0.1
    assert brier(raw, labels) < brier(raw * 3, labels)


def test_the_debiased_error_is_near_nothing_where_the_plain_one_is_chance_alone() -> (
    None
):
    rng = np.random.default_rng(3)
    plain, debiased = [], []
    for _ in range(50):
        sure = rng.uniform(0.5, 1, 150)
        right = rng.random(150) < sure
        plain.append(calibration_error(sure, right, debiased=False))
        debiased.append(calibration_error(sure, right) ** 2)
    assert np.mean(plain) > 0.09
    assert np.mean(debiased) < 0.004


@settings(deadline=None)
@given(
    sure=st.lists(st.sampled_from([0.0, 0.5, 0.9, 1.0]), min_size=1, max_size=50),
    seed=st.integers(0, 99),
    bins=st.integers(1, 20),
)
def test_bins_hold_everything_once_and_part_no_equals(
    sure: list[float], seed: int, bins: int
) -> None:
    each = np.array(sure)
    right = np.random.default_rng(seed).random(len(each)) < 0.5
    found = reliability(each, right, bins)
    assert found.count.sum() == len(each)
    assert (found.count > 0).all()
    assert (np.diff(found.confidence) > 0).all()
    assert len(found.count) <= min(bins, len(set(sure)))
    assert (found.accuracy * found.count).sum() == pytest.approx(right.sum())
    assert 0 <= expected_calibration_error(each, right, bins) <= 1


def test_all_right_and_all_wrong_have_the_error_that_they_have() -> None:
    sure = np.full(10, 0.8)
    for right, wanted in ((np.ones(10, bool), 0.2), (np.zeros(10, bool), 0.8)):
        assert expected_calibration_error(sure, right) == pytest.approx(wanted)
        assert calibration_error(sure, right) == pytest.approx(wanted)
    assert brier(np.array([[50.0, 0.0]]), np.array([0])) == pytest.approx(0)
    assert brier(np.array([[50.0, 0.0]]), np.array([1])) == pytest.approx(2)


@pytest.mark.parametrize(
    "labels", [np.array([0]), np.array([0, 3]), np.array([0, -1]), np.array([0.0, 1.0])]
)
def test_labels_that_do_not_match_are_refused(labels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="label"):
        fit_temperature(np.zeros((2, 3)), labels)


def test_what_is_not_in_the_unit_interval_is_not_calibrated() -> None:
    with pytest.raises(ValueError, match=r"0\.\.1"):
        reliability(np.array([1.5]), np.array([True]))
    with pytest.raises(ValueError, match="as many"):
        reliability(np.array([]), np.array([], bool))
