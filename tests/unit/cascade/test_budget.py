from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cascade.budget import examples_for_spill, threshold_for_spill
from cascade.targets import Calibrated, MaxSpill, Unsupported

CONFIDENCES = hnp.arrays(
    np.float64, st.integers(1, 80), elements=st.floats(0, 1, width=16)
)


def kept_to(target: MaxSpill, n: int, fresh: int | None, trials: int) -> float:
    """In which share of trials the budget is kept, in the long run or on fresh data."""
    rng = np.random.default_rng(5)
    kept = 0
    for _ in range(trials):
        found = threshold_for_spill(rng.random(n), target, fresh)
        assert isinstance(found, Calibrated)
        spilled = (
            found.threshold
            if fresh is None
            else np.mean(rng.random(fresh) < found.threshold)
        )
        kept += bool(spilled <= target.share)
    return kept / trials


@pytest.mark.parametrize("fresh", [None, 50, 400])
def test_a_budget_is_kept_as_often_as_promised_and_not_much_more(
    fresh: int | None,
) -> None:
    share = kept_to(MaxSpill(0.2, 0.9), 200, fresh, 800)
    assert 0.88 <= share <= 0.96


def test_a_budget_on_average_is_kept_on_average_and_nearly_used() -> None:
    rng = np.random.default_rng(6)
    found = [
        threshold_for_spill(rng.random(99), MaxSpill(0.1, None)) for _ in range(600)
    ]
    spilled = [each.threshold for each in found if isinstance(each, Calibrated)]
    assert np.mean(spilled) == pytest.approx(0.1, abs=0.003)


@settings(deadline=None, max_examples=60)
@given(
    sure=CONFIDENCES,
    share=st.just(0.0) | st.floats(0.001, 0.99),
    confidence=st.sampled_from([None, 0.5, 0.95]),
)
def test_no_threshold_spills_more_than_its_budget_even_of_what_it_was_set_on(
    sure: np.ndarray, share: float, confidence: float | None
) -> None:
    found = threshold_for_spill(sure, MaxSpill(share, confidence))
    if isinstance(found, Unsupported):
        return
    assert np.mean(sure < found.threshold) == found.spilled
    assert found.spilled <= share + 1 / len(sure)
    shuffled = threshold_for_spill(sure[::-1], MaxSpill(share, confidence))
    assert shuffled == found


@settings(deadline=None, max_examples=40)
@given(sure=CONFIDENCES)
def test_a_greater_budget_or_less_confidence_never_lowers_the_threshold(
    sure: np.ndarray,
) -> None:
    def threshold(share: float, confidence: float) -> float:
        found = threshold_for_spill(sure, MaxSpill(share, confidence))
        return found.threshold if isinstance(found, Calibrated) else -math.inf

    shares = [threshold(share, 0.9) for share in (0.05, 0.2, 0.5, 0.9)]
    assert shares == sorted(shares)
    surely = [threshold(0.5, confidence) for confidence in (0.99, 0.9, 0.5)]
    assert surely == sorted(surely)


def test_too_few_examples_are_told_with_how_many_would_do_and_what_they_support() -> (
    None
):
    target = MaxSpill(0.01, 0.95)
    found = threshold_for_spill(np.linspace(0, 1, 100), target)
    assert isinstance(found, Unsupported)
    assert found.examples_needed == 299 == examples_for_spill(target)
    assert isinstance(found.nearest, MaxSpill)
    assert isinstance(
        threshold_for_spill(np.linspace(0, 1, 100), found.nearest), Calibrated
    )
    assert isinstance(threshold_for_spill(np.linspace(0, 1, 299), target), Calibrated)
    assert isinstance(threshold_for_spill(np.linspace(0, 1, 298), target), Unsupported)
    assert "299 examples" in found.describe()


def test_too_few_examples_for_a_fresh_trial_name_a_share_that_they_do_support() -> None:
    sure = np.linspace(0, 1, 20)
    found = threshold_for_spill(sure, MaxSpill(0.05), fresh=30)
    assert isinstance(found, Unsupported)
    assert found.nearest is not None
    assert isinstance(found.nearest, MaxSpill)
    assert isinstance(threshold_for_spill(sure, found.nearest, 30), Calibrated)


def test_equal_confidences_spill_together_or_not_at_all() -> None:
    found = threshold_for_spill(np.full(1_000, 0.996), MaxSpill(0.5))
    assert isinstance(found, Calibrated)
    assert (found.threshold, found.spilled) == (0.996, 0.0)


def test_unusable_answers_are_over_a_budget_of_nothing() -> None:
    sure = np.array([-np.inf, 0.2, 0.8])
    found = threshold_for_spill(sure, MaxSpill(0.0))
    assert isinstance(found, Unsupported)
    assert "33.3%" in found.why
    nothing = threshold_for_spill(sure[1:], MaxSpill(0.0))
    assert isinstance(nothing, Calibrated)
    assert nothing.threshold == -math.inf


@pytest.mark.parametrize("bad", [np.array([]), np.array([0.5, np.nan])])
def test_what_is_no_confidence_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="NaN"):
        threshold_for_spill(bad, MaxSpill(0.1))


@pytest.mark.parametrize(("share", "confidence"), [(1.0, 0.9), (-0.1, 0.9), (0.1, 1.0)])
def test_what_is_no_target_is_refused(share: float, confidence: float) -> None:
    with pytest.raises(ValueError, match="under 1"):
        MaxSpill(share, confidence)
