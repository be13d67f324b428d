from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cascade.scores import (
    UNBOUNDED,
    Activation,
    NoClasses,
    NotANumber,
    Score,
    confidence,
    confidences,
    softmax,
    top_label,
)

SCORES: tuple[Score, ...] = ("max_softmax", "margin", "entropy", "value")
RELATIVE: tuple[Score, ...] = ("max_softmax", "margin", "entropy")
EVERY: tuple[Score, ...] = (*SCORES, "energy", "pnorm", "expected_misses")
logits = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 12)),
    elements=st.floats(-1e4, 1e4, width=32),
)


@pytest.mark.parametrize("score", sorted(set(EVERY) - UNBOUNDED))
@settings(deadline=None)
@given(output=logits, temperature=st.floats(0.05, 20))
def test_every_bounded_score_of_any_finite_output_is_between_nothing_and_certain(
    score: Score, output: np.ndarray, temperature: float
) -> None:
    each = confidences(output, score=score, temperature=temperature)
    assert each.shape == (output.shape[0],)
    assert (each >= 0).all()
    assert (each <= 1).all()


@settings(deadline=None)
@given(output=logits)
def test_probabilities_sum_to_one_and_keep_the_order_of_the_logits(
    output: np.ndarray,
) -> None:
    p = softmax(output)
    assert np.allclose(p.sum(axis=-1), 1)
    # Logits that differ by less than a probability can show may tie.
    most = output.argmax(axis=-1, keepdims=True)
    assert (np.take_along_axis(p, most, axis=-1)[..., 0] == p.max(axis=-1)).all()


def test_scores_of_a_known_answer_are_the_textbook_ones() -> None:
    p = np.array([[0.7, 0.2, 0.1]])
    entropy = -(p * np.log(p)).sum() / np.log(3)
    wanted = {"max_softmax": 0.7, "margin": 0.5, "entropy": 1 - entropy}
    for score in RELATIVE:
        from_p = confidence(p, score=score, activation="probabilities")
        from_logits = confidence(np.log(p) + 5, score=score)
        assert from_p == pytest.approx(wanted[score])
        assert from_logits == pytest.approx(wanted[score])


@pytest.mark.parametrize("score", RELATIVE)
def test_a_higher_temperature_is_less_sure(score: Score) -> None:
    output = np.array([3.0, 1.0, 0.0])
    sure = [confidence(output, score=score, temperature=t) for t in (0.5, 1.0, 4.0)]
    assert sure == sorted(sure, reverse=True)
    assert sure[0] > sure[-1]


def test_temperature_means_the_same_for_logits_and_for_their_probabilities() -> None:
    raw = np.array([3.0, 1.0, 0.0])
    cooled = confidence(raw, temperature=2.5)
    same = confidence(softmax(raw), activation="probabilities", temperature=2.5)
    assert same == pytest.approx(cooled)


@pytest.mark.parametrize("activation", ["logits", "probabilities"])
def test_a_tie_has_no_margin_and_the_first_label(activation: Activation) -> None:
    tie = np.array([[0.4, 0.4, 0.2]])
    assert confidence(tie, score="margin", activation=activation) == 0
    assert top_label(tie) == 0


@pytest.mark.parametrize("score", RELATIVE)
def test_one_class_of_logits_is_certain_and_a_lone_sigmoid_is_its_own_confidence(
    score: Score,
) -> None:
    assert confidence(np.array([[-3.0]]), score=score) == 1
    sigmoid = np.array([[0.3]])
    assert confidence(sigmoid, score=score, activation="probabilities") == 0.3


@pytest.mark.parametrize("score", RELATIVE)
def test_uniform_outputs_are_the_least_sure(score: Score) -> None:
    floor = {"max_softmax": 0.25, "margin": 0.0, "entropy": 0.0}[score]
    assert confidence(np.ones(4), score=score) == pytest.approx(floor)
    nothing = confidence(np.zeros(4), score=score, activation="probabilities")
    assert nothing <= floor + 1e-12


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("score", EVERY)
def test_an_output_that_is_not_a_number_is_an_error_that_counts(
    score: Score, bad: float
) -> None:
    with pytest.raises(NotANumber, match="1 of 3"):
        confidence(np.array([1.0, bad, 0.0]), score=score)


@pytest.mark.parametrize("shape", [(0,), (1, 0), (0, 10)])
def test_an_empty_output_is_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(NoClasses, match="empty"):
        confidence(np.zeros(shape))


def test_several_rows_are_as_sure_as_their_least_sure() -> None:
    output = np.array([[[9.0, 0.0], [0.1, 0.0]]])
    assert confidence(output) == pytest.approx(confidence(np.array([0.1, 0.0])))


def test_value_is_the_first_item_of_all_held_to_the_unit_interval() -> None:
    assert confidence(np.array([[0.8, 0.1], [0.2, 0.9]]), score="value") == 0.8
    assert confidence(np.array(1.7), score="value") == 1.0
    assert confidence(np.array([-2.0, 5.0]), score="value") == 0.0


@pytest.mark.parametrize("score", EVERY)
@settings(deadline=None)
@given(output=logits, temperature=st.floats(0.05, 20))
def test_one_answer_is_scored_as_it_is_among_many(
    score: Score, output: np.ndarray, temperature: float
) -> None:
    each = confidences(output, score=score, temperature=temperature)
    for row, wanted in zip(output, each, strict=True):
        alone = confidence(row, score=score, temperature=temperature)
        assert alone == pytest.approx(wanted, rel=1e-9, abs=1e-9)


@settings(deadline=None)
@given(output=logits, shift=st.floats(-100, 100), factor=st.floats(0.1, 10))
def test_the_p_norm_score_sees_neither_shift_nor_scale_and_energy_sees_the_shift(
    output: np.ndarray, shift: float, factor: float
) -> None:
    raw = output.astype(np.float64)
    pnorm = confidences(raw, score="pnorm")
    spread = np.ptp(raw, axis=-1)
    seen = (spread > 1e-6) | (spread == 0)  # less drowns in the rounding of a sum
    moved = confidences((raw + shift) * factor, score="pnorm")
    steady = seen & ((spread > 1e-3) | (raw.shape[1] == 1))
    assert moved[steady] == pytest.approx(pnorm[steady], abs=1e-6)
    energy = confidences(raw, score="energy")
    assert confidences(raw + shift, score="energy") == pytest.approx(energy + shift)


def test_energy_and_p_norm_are_the_textbook_ones() -> None:
    energy = confidence(np.array([1.0, 2.0]), score="energy", temperature=2.0)
    assert energy == pytest.approx(2 * np.log(np.exp(0.5) + np.exp(1.0)))
    # Centred: -2, 1, 1; the 2-norm is the root of 6.
    pnorm = confidence(np.array([0.0, 3.0, 3.0]), score="pnorm", norm=2.0)
    assert pnorm == pytest.approx(1 / np.sqrt(6))


@pytest.mark.parametrize("score", ["energy", "pnorm"])
def test_a_score_of_logits_is_not_read_from_probabilities(score: Score) -> None:
    with pytest.raises(ValueError, match="needs logits"):
        confidences(np.ones((1, 3)), score=score, activation="probabilities")


def test_all_logits_equal_say_nothing_to_the_p_norm_and_one_class_is_certain() -> None:
    assert confidence(np.zeros(5), score="pnorm") == 0
    assert confidence(np.zeros(1), score="pnorm") == 1


def test_a_detector_is_as_sure_as_it_is_likely_to_have_called_nothing_wrong() -> None:
    def sure(*scores: float) -> float:
        return confidence(
            np.array(scores), score="expected_misses", activation="probabilities"
        )

    assert sure(1.0, 1.0) == 1.0
    assert sure(0.9, 0.2) == pytest.approx(np.exp(-0.3))
    assert sure(0.9, 0.2, 0.0, 0.0) == sure(0.9, 0.2)  # padding changes nothing
    assert sure(0.9, 0.5) < sure(0.9, 0.4) < sure(0.9, 0.1)
    assert sure(0.0, 0.0) == 0.0


def test_candidates_in_any_shape_are_of_one_picture() -> None:
    flat = np.array([0.9, 0.2, 0.4, 0.6])
    for shape in ((4,), (1, 4), (4, 1), (1, 2, 2)):
        assert confidence(
            flat.reshape(shape), score="expected_misses", activation="probabilities"
        ) == pytest.approx(np.exp(-1.1))


def test_float_logits_tell_apart_what_int8_probabilities_tie() -> None:
    raw = np.random.default_rng(1).normal(0, 1, (5_000, 10)) + 7 * np.eye(10)[0]
    eighths = np.round(softmax(raw) * 256).clip(0, 255) / 256
    coarse = confidences(eighths, activation="probabilities")
    fine = confidences(raw)
    assert len(np.unique(coarse)) <= 256
    assert len(np.unique(fine)) == len(raw)
