"""The calibration that a manifest carries."""

import json
from typing import Any

import numpy as np
import pytest

from bundle.calibration import Calibration
from bundle.manifest import ManifestError, parse_manifest
from cascade.drift import DriftTest
from cascade.effective import ladder

SCORES = np.random.default_rng(1).beta(5, 1, 5_000)
LADDER = ladder(SCORES, 0.7)
STATE = DriftTest.calibrated(np.append(SCORES, -np.inf)).to_state()


def stated(**changes: Any) -> dict[str, Any]:
    calibration = {
        "target": {
            "text": "at most 2 points worse than the cloud with 95% confidence",
            "kind": "excess",
            "limit": 0.02,
            "confidence": 0.95,
        },
        "rungs": list(LADDER.rungs),
        "scores": {"edges": STATE["edges"], "counts": STATE["counts"]},
        "cloud": {"output": "logits", "activation": "logits", "temperature": 1.3},
        "measured": {"examples": 5_000, "spilled": 0.2, "realised": 0.012},
        **changes,
    }
    return {
        "format": 1,
        "name": "fashion",
        "version": "1",
        "model_file": "model.tflite",
        "decision": {"output": "logits", "threshold": 0.7},
        "calibration": calibration,
    }


def read(manifest: dict[str, Any]) -> Calibration:
    found = parse_manifest(json.dumps(manifest).encode()).calibration
    assert found is not None
    return found


def test_what_the_cascade_has_calibrated_survives_the_manifest() -> None:
    found = read(stated())
    assert tuple(found.rungs) == LADDER.rungs
    assert found.scores is not None
    again = DriftTest(found.scores.edges, found.scores.counts)
    assert again.to_state()["counts"] == STATE["counts"]
    assert again.to_state()["edges"] == STATE["edges"]


def test_a_manifest_without_calibration_is_as_it_was() -> None:
    manifest = stated()
    del manifest["calibration"]
    parsed = parse_manifest(json.dumps(manifest).encode())
    assert parsed.calibration is None
    assert parsed.answers == "wait"


def test_every_part_may_be_left_out() -> None:
    manifest = stated()
    manifest["calibration"] = {}
    assert read(manifest) == Calibration()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rungs": [0.5, 0.4, 0.7]}, "never fall"),
        ({"rungs": [0.5, 0.6]}, "last rung"),
        ({"rungs": [0.0] * 64 + [0.7]}, "rungs"),
        ({"scores": {"edges": [0.1, 0.1], "counts": [1, 2, 3]}}, "rise"),
        ({"scores": {"edges": [0.1], "counts": [1]}}, "counts"),
        ({"scores": {"edges": [], "counts": []}}, "counts"),
        ({"cloud": {"output": "logits", "temperature": 0}}, "temperature"),
        ({"target": {"text": "x", "kind": "luck", "limit": 0.1}}, "kind"),
        ({"measured": {"examples": 0, "spilled": 0.1}}, "examples"),
    ],
)
def test_a_calibration_that_cannot_be_is_refused_by_name(
    changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(ManifestError, match=named):
        read(stated(**changes))


def test_a_calibration_without_a_decision_is_refused() -> None:
    manifest = stated()
    del manifest["decision"]
    with pytest.raises(ManifestError, match="needs the decision"):
        read(manifest)
