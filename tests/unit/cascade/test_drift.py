from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade.drift import MAX_BINS, DriftTest


def fed(test: DriftTest, scores: np.ndarray, rng: np.random.Generator) -> DriftTest:
    test.observe_all(scores.tolist(), rng.random(len(scores)).tolist())
    return test


def test_without_a_change_it_stays_quiet_but_for_the_stated_share_of_lives() -> None:
    alarms = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        test = DriftTest.calibrated(rng.random(500), false_alarm=0.1)
        alarms += fed(test, rng.random(3_000), rng).found.alarm
    assert alarms <= 8  # 4 expected at most; more than 8 has a chance of 1.5 %


def test_it_stays_quiet_long_after_what_it_was_calibrated_on_is_outnumbered() -> None:
    rng = np.random.default_rng(1)
    test = DriftTest.calibrated(rng.beta(5, 1, 300), false_alarm=0.01)
    found = fed(test, rng.beta(5, 1, 100_000), rng).found
    assert not found.alarm
    assert found.observed == 100_000


@pytest.mark.parametrize("quiet", [0, 20_000])
@pytest.mark.parametrize(
    ("a", "b", "lower"), [(2, 2, True), (20, 1, False)], ids=["unsure", "surer"]
)
def test_a_change_is_noticed_soon_however_long_it_was_quiet_before(
    quiet: int, a: float, b: float, lower: bool
) -> None:
    rng = np.random.default_rng(2)
    test = DriftTest.calibrated(rng.beta(5, 1, 2_000), false_alarm=0.01)
    fed(test, rng.beta(5, 1, quiet), rng)
    found = fed(test, rng.beta(a, b, 2_000), rng).found
    assert found.alarm
    assert found.alarmed_at is not None
    assert found.alarmed_at - quiet <= 400
    assert found.lower == lower


def test_scores_that_spread_to_both_ends_are_noticed_though_their_middle_stays() -> (
    None
):
    rng = np.random.default_rng(3)
    test = DriftTest.calibrated(rng.normal(0, 1, 2_000))
    assert fed(test, rng.normal(0, 2, 1_000), rng).found.alarm


@pytest.mark.parametrize("kept", [1.0, -np.inf])
def test_scores_that_all_tie_raise_no_alarm_until_they_do_not(kept: float) -> None:
    rng = np.random.default_rng(4)
    test = DriftTest.calibrated(np.full(500, kept))
    assert not fed(test, np.full(3_000, kept), rng).found.alarm
    other = 0.5 if np.isinf(kept) else np.nan
    assert fed(test, np.full(200, other), rng).found.alarm


def test_an_alarm_stays_and_is_raised_once() -> None:
    rng = np.random.default_rng(5)
    test = DriftTest.calibrated(rng.random(500))
    raised = [test.observe(0.0, float(rng.random())) for _ in range(300)]
    assert sum(raised) == 1
    found = test.found
    assert found.alarmed_at == raised.index(True) + 1
    assert found.evidence >= 100
    assert fed(test, rng.random(100), rng).found.alarm


@settings(deadline=None, max_examples=20)
@given(cut=st.integers(0, 60), seed=st.integers(0, 99))
def test_a_test_that_was_stored_goes_on_as_if_it_had_not_been(
    cut: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    scores, chances = rng.random(60) ** 2, rng.random(60)
    whole = DriftTest.calibrated(rng.random(50))
    parts = DriftTest.from_state(whole.to_state())
    whole.observe_all(scores.tolist(), chances.tolist())
    parts.observe_all(scores[:cut].tolist(), chances[:cut].tolist())
    again = DriftTest.from_state(json.loads(json.dumps(parts.to_state())))
    again.observe_all(scores[cut:].tolist(), chances[cut:].tolist())
    assert again.found == whole.found
    assert again.to_state() == whole.to_state()


def test_the_state_does_not_grow() -> None:
    rng = np.random.default_rng(6)
    test = DriftTest.calibrated(rng.random(5_000), bins=1_000)
    before = len(json.dumps(test.to_state()))
    fed(test, rng.random(2_000), rng)
    state = test.to_state()
    assert len(json.dumps(state)) < before + 400
    assert len(state["counts"]) <= MAX_BINS


@settings(deadline=None)
@given(scores=st.lists(st.floats(allow_nan=True), max_size=30))
def test_no_score_breaks_it(scores: list[float]) -> None:
    test = DriftTest.calibrated(np.array([0.1, 0.5, 0.5, 0.9]))
    test.observe_all(scores, [0.5] * len(scores))
    assert np.isfinite(test.found.evidence)
    assert test.found.evidence >= 0


@pytest.mark.parametrize(
    ("edges", "counts", "chance"),
    [
        ([1.0, 0.5], [1, 1, 1], 0.1),
        ([np.inf], [1, 1], 0.1),
        ([0.5], [1], 0.1),
        ([0.5], [1, -1], 0.1),
        ([0.5], [1, 1], 0.0),
        (list(range(70)), [1] * 71, 0.1),
    ],
)
def test_what_is_no_test_is_refused(
    edges: list[float], counts: list[int], chance: float
) -> None:
    with pytest.raises(ValueError, match=r"edges|chance"):
        DriftTest(edges, counts, chance)


def test_what_is_no_state_is_refused() -> None:
    state = DriftTest.calibrated(np.array([0.5])).to_state()
    with pytest.raises(ValueError, match="bets"):
        DriftTest.from_state({**state, "money": [0.0]})
    with pytest.raises(ValueError, match="not the state"):
        DriftTest.from_state({})
    with pytest.raises(ValueError, match="NaN"):
        DriftTest.calibrated(np.array([np.nan]))
