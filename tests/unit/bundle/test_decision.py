from __future__ import annotations

import json
import math
from typing import Any

import pytest

from bundle.manifest import Manifest, ManifestError, parse_manifest


def manifest(**decision: Any) -> Manifest:
    raw = {
        "format": 1,
        "name": "m",
        "version": "1",
        "model_file": "m.tflite",
        "decision": {"output": "y", **decision},
    }
    return parse_manifest(json.dumps(raw).encode())


@pytest.mark.parametrize("threshold", [-12.5, 0.0, 30.0])
def test_a_threshold_on_energy_is_any_finite_number(threshold: float) -> None:
    decision = manifest(score="energy", threshold=threshold).decision
    assert decision is not None
    assert decision.threshold == threshold


@pytest.mark.parametrize("score", ["max_softmax", "pnorm", "expected_misses", "value"])
@pytest.mark.parametrize("threshold", [-0.1, 1.1])
def test_a_threshold_on_any_other_score_is_in_the_unit_interval(
    score: str, threshold: float
) -> None:
    with pytest.raises(ManifestError, match=r"in 0\.\.1"):
        manifest(score=score, threshold=threshold)


def test_a_confidence_of_its_own_is_in_the_unit_interval_whatever_the_score() -> None:
    assert manifest(score="energy", confidence_output="sure", threshold=0.5).decision
    with pytest.raises(ManifestError, match="'sure' is in"):
        manifest(score="energy", confidence_output="sure", threshold=5)


@pytest.mark.parametrize("threshold", [math.inf, -math.inf, math.nan])
def test_a_threshold_is_finite(threshold: float) -> None:
    with pytest.raises(ManifestError, match="finite"):
        manifest(score="energy", threshold=threshold)


@pytest.mark.parametrize("score", ["energy", "pnorm"])
def test_a_score_of_logits_is_not_read_from_probabilities(score: str) -> None:
    with pytest.raises(ManifestError, match="needs logits"):
        manifest(score=score, activation="probabilities")
