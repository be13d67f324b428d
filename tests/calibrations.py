"""Manifests with a calibration, for tests of what the agent makes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascade.drift import DriftTest
from cascade.effective import ladder


def calibration(
    scores: NDArray[np.float64],
    threshold: float,
    *,
    kind: str = "excess",
    limit: float = 0.02,
    **more: Any,
) -> dict[str, Any]:
    """The part of a manifest.

    Args:
        scores: what was calibrated on.
        threshold: the decision's.
        kind: of the target.
        limit: of the target.
        more: what is to be otherwise.
    """
    state = DriftTest.calibrated(scores, bins=32).to_state()
    return {
        "target": {
            "text": f"{kind} {limit}",
            "kind": kind,
            "limit": limit,
            "confidence": 0.95,
        },
        "rungs": list(ladder(scores, threshold).rungs),
        "scores": {"edges": state["edges"], "counts": state["counts"]},
        "cloud": {"output": "logits", "activation": "logits", "temperature": 1.0},
        **more,
    }


def manifest(threshold: float = 0.6, **calibrated: Any) -> dict[str, Any]:
    """A whole manifest of three classes, calibrated on evenly spread scores."""
    scores = np.linspace(0.0, 1.0, 1001)
    return {
        "format": 1,
        "name": "m",
        "version": "1",
        "model_file": "m.tflite",
        "task": "classify",
        "labels": ["a", "b", "c"],
        "decision": {"output": "logits", "threshold": threshold},
        "calibration": calibration(scores, threshold, **calibrated),
    }
