from __future__ import annotations

import json

import numpy as np
import pytest

from builder.core import told
from builder.core.gallery import confused, occlusion_map
from builder.core.promise import calibrate
from builder.core.quality import Answers, quality, temperature_of
from builder.core.refusal import BuildRefused
from builder.core.soft_targets import activation_of, as_logits, softened
from builder.core.steps import step_key
from cascade.targets import Calibrated, MaxExcess, MaxSpill, Unsupported

RNG = np.random.default_rng(7)


def answers(n: int, skill: float, seed: int = 1) -> Answers:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    outputs = rng.normal(size=(n, 3)).astype(np.float32)
    outputs[np.arange(n), labels] += np.float32(skill)
    return Answers(outputs, labels)


EDGE, CLOUD = answers(3000, 2.0), answers(3000, 5.0)


def test_a_candidate_is_measured_alone_and_with_the_cloud() -> None:
    found = quality(EDGE, CLOUD, classes=3)
    assert found.accuracy == pytest.approx(EDGE.right.mean())
    assert found.cloud_accuracy is not None
    assert found.cloud_accuracy > found.accuracy
    assert found.deferral is not None
    assert 0.3 < found.deferral < 1
    assert found.distinct > 2900
    assert found.deferral_limits is None
    drawn = quality(EDGE, CLOUD, classes=3, rng=np.random.default_rng(1))
    assert drawn.deferral_limits is not None
    assert drawn.deferral_limits[0] < found.deferral < drawn.deferral_limits[1]
    assert quality(EDGE, None, classes=3).agreement is None


def test_answers_that_are_no_numbers_are_wrong_and_spilled_first() -> None:
    outputs = EDGE.outputs.copy()
    outputs[:5] = np.nan
    broken = Answers(outputs, EDGE.labels)
    assert not broken.right[:5].any()
    assert (broken.confidence[:5] == -np.inf).all()
    json.dumps(told.reliability_of(broken), allow_nan=False)


def test_probabilities_are_told_from_logits() -> None:
    shares = softened(EDGE.outputs, 1.0)
    assert activation_of(shares) == "probabilities"
    assert activation_of(EDGE.outputs) == "logits"
    assert temperature_of(shares, EDGE.labels) == 1.0
    assert np.allclose(softened(as_logits(shares), 1.0), shares, atol=1e-5)


def test_a_threshold_is_found_on_what_the_data_support() -> None:
    found = calibrate(EDGE, CLOUD, MaxExcess(0.03), None)
    assert isinstance(found, Calibrated)
    assert found.measured <= 0.03


def test_a_cloud_that_is_worse_is_said_to_be() -> None:
    found = calibrate(CLOUD, EDGE, MaxExcess(0.03), None)
    assert isinstance(found, Unsupported)
    assert "worse than the edge" in found.describe()


def test_a_target_on_risk_without_a_cloud_is_refused_and_one_on_spilling_is_not() -> (
    None
):
    with pytest.raises(BuildRefused, match="no cloud model"):
        calibrate(EDGE, None, MaxExcess(0.03), None)
    assert isinstance(calibrate(EDGE, None, MaxSpill(0.1), None), Calibrated)


def test_the_gallery_shows_the_commonest_confusions_first() -> None:
    shown = confused(EDGE, CLOUD, threshold=0.6, most=12, each=2)
    assert len(shown) == 12
    assert [each.times for each in shown] == sorted(
        (each.times for each in shown), reverse=True
    )
    for each in shown:
        assert EDGE.labels[each.row] == each.truth != each.said
        assert each.spilled == (EDGE.confidence[each.row] < 0.6)


@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 2), (8,)])
def test_an_occlusion_map_finds_what_the_answer_hangs_on(
    shape: tuple[int, ...],
) -> None:
    example = np.zeros(shape, np.float32)
    example[5] = 1.0

    def predict(batch: np.ndarray) -> np.ndarray:
        sure = batch[:, 5].reshape(len(batch), -1).mean(axis=1)
        return np.stack([1 - sure, sure], axis=1)

    heat = occlusion_map(predict, example, 1, patch=2, fill=0.0)
    assert heat.shape == (shape[:-1] if len(shape) > 1 else shape)
    row = heat.reshape(8, -1).sum(axis=1)
    assert int(row.argmax()) in (4, 5)
    assert row[0] == 0


def test_a_step_is_known_by_its_options_and_by_what_it_is_made_of() -> None:
    key = step_key("train", {"a": 1, "b": 2}, "x")
    assert key == step_key("train", {"b": 2, "a": 1}, "x")
    assert (
        len(
            {
                key,
                step_key("train", {"a": 2, "b": 2}, "x"),
                step_key("train", {"a": 1, "b": 2}, "y"),
            }
        )
        == 3
    )
