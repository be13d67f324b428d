from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cascade.policy import Judgement, Rule, judge
from cascade.scores import Score, confidence

SURE = np.array([[8.0, 0.0, 0.0]], np.float32)
UNSURE = np.array([[0.2, 0.1, 0.3]], np.float32)


def test_a_sure_answer_stands_and_an_unsure_one_is_hard_with_its_label_kept() -> None:
    rule = Rule(threshold=0.6)
    kept = judge(SURE, rule)
    assert (kept.label_index, kept.hard, kept.why) == (0, False, None)
    asked = judge(UNSURE, rule)
    assert (asked.label_index, asked.hard) == (2, True)
    assert asked.why is not None
    assert "0.600" in asked.why


def test_a_confidence_at_the_threshold_stands() -> None:
    rule = Rule(score="value", threshold=0.5)
    assert not judge(np.array([0.5]), rule).hard
    assert judge(np.array([np.nextafter(0.5, 0)]), rule).hard


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("threshold", [0.0, 0.9])
def test_an_output_that_is_not_a_number_is_hard_under_any_threshold(
    bad: float, threshold: float
) -> None:
    judged = judge(np.array([[bad, 9.0]]), Rule(threshold=threshold))
    assert judged == Judgement(
        None, 0.0, hard=True, why="1 of 2 items are NaN or infinite", unusable=True
    )
    assert judged.score == -np.inf


@pytest.mark.parametrize(
    "nothing", [np.zeros((0, 6)), np.zeros((1, 0, 6)), np.zeros((1, 10)), np.array([])]
)
@pytest.mark.parametrize("score", ["value", "max_softmax"])
def test_an_empty_detection_is_hard_even_without_a_threshold(
    nothing: np.ndarray, score: Score
) -> None:
    judged = judge(nothing, Rule(task="detect", score=score))
    assert judged == Judgement(
        None, 0.0, hard=True, why="nothing was detected", unusable=True
    )


def test_a_detection_is_judged_by_its_first_score_and_names_no_class() -> None:
    rule = Rule(task="detect", score="value", threshold=0.5)
    assert judge(np.array([[0.9, 0.2, 0.0]]), rule) == Judgement(None, 0.9, hard=False)
    assert judge(np.array([[0.4, 0.2, 0.0]]), rule).hard


def test_an_empty_output_of_a_classifier_is_hard() -> None:
    judged = judge(np.zeros((1, 0)), Rule())
    assert judged.hard
    assert judged.confidence == 0


def test_several_rows_have_no_label_and_the_doubt_of_the_worst() -> None:
    judged = judge(np.concatenate([SURE, UNSURE]), Rule(threshold=0.6))
    assert judged.label_index is None
    assert judged.hard


def test_a_scalar_output_is_judged() -> None:
    assert judge(np.array(0.7), Rule(score="value", threshold=0.6)).confidence == 0.7
    assert judge(np.array(3.0), Rule()).label_index == 0


@settings(deadline=None)
@given(
    output=hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.int8, np.int64]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
    ),
    score=st.sampled_from(
        ["max_softmax", "margin", "entropy", "energy", "pnorm", "value"]
    ),
    task=st.sampled_from(["classify", "detect", "other"]),
    threshold=st.floats(0, 1),
)
def test_no_output_crashes_and_hard_means_under_the_threshold_or_unusable(
    output: np.ndarray, score: Score, task: str, threshold: float
) -> None:
    rule = Rule(score=score, task=task, threshold=threshold)  # type: ignore[arg-type] # hypothesis draws str
    judged = judge(output, rule)
    assert np.isfinite(judged.confidence)
    assert score == "energy" or 0 <= judged.confidence <= 1
    assert judged.hard == (judged.why is not None)
    if not judged.hard:
        assert judged.confidence >= threshold
        assert judged.confidence == confidence(output, score=score)


def test_nothing_found_stands_where_the_manifest_calls_it_an_answer() -> None:
    rule = Rule(task="detect", score="expected_misses", empty_is_sure=True)
    for nothing in (np.zeros((0, 6)), np.zeros((1, 10))):
        assert judge(nothing, rule) == Judgement(None, 1.0, hard=False)


def test_a_second_output_may_be_the_confidence_of_the_first() -> None:
    rule = Rule(task="other", threshold=0.5)
    price = np.array([[812_000.0]])
    kept = judge(price, rule, confidence_output=np.array([[0.7]]))
    assert kept == Judgement(None, 0.7, hard=False)
    assert judge(price, rule, confidence_output=np.array([[0.2]])).hard
    nothing = judge(price, rule, confidence_output=np.array([np.nan]))
    assert (nothing.hard, nothing.confidence) == (True, 0.0)
    named = judge(SURE, Rule(threshold=0.5), confidence_output=np.array([0.7]))
    assert (named.label_index, named.confidence) == (0, 0.7)


def test_the_threshold_in_force_is_the_one_that_counts() -> None:
    rule = Rule(score="value", threshold=0.6)
    middling = np.array([0.5])
    assert judge(middling, rule).hard
    assert not judge(middling, rule, threshold=0.4).hard
    assert not judge(middling, rule, threshold=-np.inf).hard


def test_energy_takes_any_threshold_and_its_rule_refuses_probabilities() -> None:
    rule = Rule(score="energy", threshold=-3.0)
    assert judge(np.array([[-9.0, -9.0]]), rule).hard
    assert not judge(np.array([[-1.0, -9.0]]), rule).hard
    with pytest.raises(ValueError, match="needs logits"):
        Rule(score="energy", activation="probabilities")
