from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cascade.risk import threshold_for_risk
from cascade.targets import (
    Calibrated,
    Examples,
    MaxError,
    MaxExcess,
    MaxSpill,
    Unsupported,
    manifest_threshold,
)


@dataclass(frozen=True)
class World:
    """Confidences are uniform, and the edge is wrong the more often the lower they are.

    The risk of every threshold is known: the promise is held against the truth.
    """

    worst: float = 0.4
    cloud_wrong: float = 0.03

    def draw(self, n: int, rng: np.random.Generator) -> Examples:
        sure = rng.random(n)
        edge_wrong = rng.random(n) < self.worst * (1 - sure) ** 2
        return Examples(
            sure,
            ~edge_wrong,
            rng.random(n) >= self.cloud_wrong,
            rng.integers(0, 3, n),
        )

    def edge_kept_wrong(self, threshold: float) -> float:
        t = min(max(threshold, 0.0), 1.0)
        return self.worst * (1 - t) ** 3 / 3

    def excess(self, threshold: float) -> float:
        t = min(max(threshold, 0.0), 1.0)
        return self.edge_kept_wrong(t) - self.cloud_wrong * (1 - t)

    def lowest(self, excess: float) -> float:
        grid = np.linspace(0, 1, 10_001)
        return next(float(t) for t in grid if self.excess(float(t)) <= excess)


WORLD = World()


@pytest.mark.parametrize("fresh", [None, 1_000])
def test_an_excess_is_kept_as_often_as_promised_and_spills_little_more(
    fresh: int | None,
) -> None:
    rng = np.random.default_rng(3)
    kept, beyond = 0, []
    for _ in range(40):
        found = threshold_for_risk(
            WORLD.draw(2_000, rng), MaxExcess(0.03, 0.9), fresh=fresh
        )
        assert isinstance(found, Calibrated)
        if fresh is None:
            excess = WORLD.excess(found.threshold)
        else:
            other = WORLD.draw(fresh, rng)
            keeps = other.confidence >= found.threshold
            gap = other.cloud_right.astype(int) - other.edge_right.astype(int)
            excess = float(np.mean(keeps * gap))
        kept += excess <= 0.03
        beyond.append(found.threshold - WORLD.lowest(0.03))
    assert kept >= 33  # 36 expected at worst; fewer than 33 has a chance under 5 %
    assert np.mean(beyond) <= 0.12


def test_an_error_in_all_is_kept_as_often_as_promised() -> None:
    rng = np.random.default_rng(4)
    kept = 0
    for _ in range(100):
        found = threshold_for_risk(WORLD.draw(1_500, rng), MaxError(0.08, 0.9))
        assert isinstance(found, Calibrated)
        t = max(found.threshold, 0.0)
        kept += WORLD.edge_kept_wrong(t) + WORLD.cloud_wrong * t <= 0.08
    assert kept >= 85


def test_an_excess_on_average_is_kept_on_average() -> None:
    rng = np.random.default_rng(8)
    excess = []
    for _ in range(200):
        found = threshold_for_risk(WORLD.draw(400, rng), MaxExcess(0.03, None))
        assert isinstance(found, Calibrated)
        excess.append(WORLD.excess(found.threshold))
    assert np.mean(excess) <= 0.03


def test_a_limit_by_class_is_kept_by_every_class_without_paying_for_their_number() -> (
    None
):
    rng = np.random.default_rng(9)
    kept = 0
    for _ in range(25):
        examples = WORLD.draw(900, rng)
        found = threshold_for_risk(
            examples, MaxExcess(0.08, 0.9, per_class=0.08), fresh=None
        )
        assert isinstance(found, Calibrated)
        whole = threshold_for_risk(examples, MaxExcess(0.08, 0.9))
        assert isinstance(whole, Calibrated)
        assert found.threshold >= whole.threshold
        kept += WORLD.excess(found.threshold) <= 0.08  # of each class alike
    assert kept >= 20


@settings(deadline=None, max_examples=40)
@given(
    sure=hnp.arrays(
        np.float64, st.integers(1, 300), elements=st.floats(0, 1, width=16)
    ),
    seed=st.integers(0, 99),
    excess=st.sampled_from([0.02, 0.1, 0.5]),
    confidence=st.sampled_from([None, 0.9]),
)
def test_order_changes_nothing_and_measured_is_what_the_threshold_does(
    sure: np.ndarray, seed: int, excess: float, confidence: float | None
) -> None:
    rng = np.random.default_rng(seed)
    edge, cloud = rng.random(len(sure)) < sure, rng.random(len(sure)) < 0.95
    target = MaxExcess(excess, confidence)
    found = threshold_for_risk(Examples(sure, edge, cloud), target)
    turned = Examples(sure[::-1], edge[::-1], cloud[::-1])
    again = threshold_for_risk(turned, target)
    assert again == found
    if isinstance(found, Calibrated):
        kept = sure >= found.threshold
        assert found.spilled == pytest.approx(1 - kept.mean())
        gap = cloud.astype(int) - edge.astype(int)
        assert found.measured == pytest.approx(np.mean(kept * gap))
        assert found.measured <= excess


def test_a_looser_target_never_spills_more() -> None:
    examples = WORLD.draw(3_000, np.random.default_rng(1))
    spilled = []
    for excess in (0.01, 0.02, 0.04, 0.08, 0.2):
        found = threshold_for_risk(examples, MaxExcess(excess))
        assert isinstance(found, Calibrated)
        spilled.append(found.spilled)
    assert spilled == sorted(spilled, reverse=True)
    assert spilled[-1] == 0


def test_too_few_examples_are_told_with_how_many_would_do() -> None:
    rng = np.random.default_rng(2)
    target = MaxExcess(0.01)
    few = threshold_for_risk(WORLD.draw(200, rng), target)
    assert isinstance(few, Unsupported)
    assert few.examples_needed is not None
    assert 200 < few.examples_needed < 2_000
    assert "too few" in few.why
    enough = threshold_for_risk(WORLD.draw(5 * few.examples_needed, rng), target)
    assert isinstance(enough, Calibrated)


def test_the_nearest_target_is_one_that_is_met() -> None:
    examples = WORLD.draw(2_000, np.random.default_rng(2))
    within = MaxSpill(0.1)
    asked = MaxExcess(0.01)
    refused = threshold_for_risk(examples, asked, spill=within)
    assert isinstance(refused, Unsupported)
    assert "may be" in refused.why
    assert isinstance(refused.nearest, MaxExcess)
    assert refused.nearest.excess > 0.01
    met = threshold_for_risk(examples, refused.nearest, spill=within)
    assert isinstance(met, Calibrated)
    assert met.spilled <= 0.1


def test_an_error_below_what_any_threshold_does_needs_another_model_not_more_data() -> (
    None
):
    examples = WORLD.draw(2_000, np.random.default_rng(2))
    refused = threshold_for_risk(examples, MaxError(0.005))
    assert isinstance(refused, Unsupported)
    assert refused.examples_needed is None
    assert "the best any threshold does" in refused.why
    assert isinstance(refused.nearest, MaxError)


def test_a_cloud_worse_than_the_edge_is_said_plainly_and_refused() -> None:
    rng = np.random.default_rng(2)
    examples = World(worst=0.1, cloud_wrong=0.3).draw(500, rng)
    refused = threshold_for_risk(examples, MaxExcess(0.1))
    assert isinstance(refused, Unsupported)
    assert "worse than the edge" in refused.why
    assert refused.nearest is None


@pytest.mark.parametrize(("edge", "cloud"), [(True, True), (False, False)])
def test_models_that_never_differ_need_no_spilling(edge: bool, cloud: bool) -> None:
    n = 400
    examples = Examples(np.linspace(0, 1, n), np.full(n, edge), np.full(n, cloud))
    found = threshold_for_risk(examples, MaxExcess(0.02))
    assert isinstance(found, Calibrated)
    assert (found.threshold, found.spilled) == (-math.inf, 0.0)
    assert manifest_threshold(found.threshold, "max_softmax") == 0.0
    assert manifest_threshold(found.threshold, "energy") < -1e300


def test_an_edge_that_is_always_wrong_has_nothing_to_keep() -> None:
    n = 400
    wrong, right = np.zeros(n, np.bool_), np.ones(n, np.bool_)
    refused = threshold_for_risk(
        Examples(np.linspace(0, 1, n), wrong, right), MaxExcess(0.001)
    )
    assert isinstance(refused, Unsupported)
    with pytest.raises(ValueError, match="spills everything"):
        manifest_threshold(math.inf, "energy")


def test_unusable_answers_are_spilled_under_any_threshold() -> None:
    n = 1_000
    sure = np.linspace(0, 1, n)
    sure[:200] = -np.inf
    edge = np.isfinite(sure)
    found = threshold_for_risk(
        Examples(sure, edge, np.ones(n, np.bool_)), MaxExcess(0.01)
    )
    assert isinstance(found, Calibrated)
    assert found.threshold == -math.inf
    assert found.spilled == pytest.approx(0.2)


def test_a_model_or_a_class_without_a_usable_answer_is_no_error() -> None:
    n = 600
    sure = np.linspace(0, 1, n)
    classes = np.arange(n) % 3
    sure[classes == 2] = -np.inf
    right = np.ones(n, np.bool_)
    some = Examples(sure, np.isfinite(sure), right, classes)
    found = threshold_for_risk(some, MaxExcess(0.05, per_class=0.05))
    assert isinstance(found, Calibrated)
    assert (found.threshold, found.spilled) == (-math.inf, 200 / 600)
    none = Examples(np.full(n, -np.inf), ~right, right, classes)
    for target in (MaxExcess(0.1), MaxError(0.1), MaxExcess(0.1, None)):
        refused = threshold_for_risk(none, target)
        assert isinstance(refused, Unsupported)
        assert "unusable" in refused.why


@given(n=st.integers(300, 900), spilled=st.integers(1, 9))
@settings(deadline=None, max_examples=20)
def test_a_spill_that_just_meets_its_budget_meets_it(n: int, spilled: int) -> None:
    sure = np.arange(n) / n
    hard = np.floor(n * spilled / 10)
    edge = sure * n >= hard
    within = MaxSpill(0.95, None)
    found = threshold_for_risk(
        Examples(sure, edge, np.ones(n, np.bool_)), MaxExcess(0.02), spill=within
    )
    assert isinstance(found, Calibrated)
    assert found.spilled == np.mean(sure < found.threshold)


def test_equal_confidences_are_kept_together_or_not_at_all() -> None:
    n = 2_000
    sure = np.repeat([0.2, 0.9], n // 2)
    edge = np.ones(n, np.bool_)
    edge[:200] = False
    found = threshold_for_risk(
        Examples(sure, edge, np.ones(n, np.bool_)), MaxExcess(0.02)
    )
    assert isinstance(found, Calibrated)
    assert found.threshold == 0.9
    assert found.spilled == pytest.approx(0.5)


def test_what_cannot_be_asked_is_refused() -> None:
    n = 10
    right = np.ones(n, np.bool_)
    examples = Examples(np.linspace(0, 1, n), right, right)
    with pytest.raises(ValueError, match="needs the class"):
        threshold_for_risk(examples, MaxExcess(0.1, per_class=0.1))
    classed = Examples(np.linspace(0, 1, n), right, right, np.zeros(n, np.int64))
    with pytest.raises(ValueError, match="needs a confidence"):
        threshold_for_risk(classed, MaxExcess(0.1, None, per_class=0.1))
    for bad in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="under 1"):
            MaxExcess(bad)
    with pytest.raises(ValueError, match="NaN"):
        Examples(np.full(n, np.nan), right, right)
    with pytest.raises(ValueError, match="one length"):
        Examples(np.ones(n - 1), right, right)
    with pytest.raises(ValueError, match="bool"):
        Examples(np.ones(n), np.ones(n), right)  # type: ignore[arg-type] # as a caller without types may
